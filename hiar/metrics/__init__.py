"""What is measured of videos: drift, motion, continuity, and what the oracle of the built-in world says."""
