"""Metrics of videos: drift and its published forms, looks, motion and continuity, and their summaries."""
