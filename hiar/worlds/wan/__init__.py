"""Wan2.1: its text encoder, its video codec and its checkpoints."""
