"""Experiments as Prefect flows; DVC defines the stages and decides which are stale."""
