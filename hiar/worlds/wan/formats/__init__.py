"""Checkpoints of Wan in the formats in use: read without holding them in memory, checked, and written."""
