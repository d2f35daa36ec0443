"""Experiments as Prefect flows; DVC says what a stage is and when it is stale."""
