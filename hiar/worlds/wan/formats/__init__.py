"""Checkpoints of Wan in the formats people have: read without holding them in memory, checked, and written."""
