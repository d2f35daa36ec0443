"""Evaluators of videos: one judge per world."""
