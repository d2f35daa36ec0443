"""The world of Wan 2.1: text to video at 832x480."""
