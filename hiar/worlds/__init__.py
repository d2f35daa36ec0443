"""What a world is, and the worlds there are: the built-in one and Wan2.1."""
