"""Atomic files and folders, tensor shards, and video files."""
