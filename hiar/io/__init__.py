"""Atomic files and folders, tensor shards, video files, and experiment tracking."""
