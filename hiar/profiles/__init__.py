"""Ways of scoring videos: what is measured, how it becomes one figure per video, and a record of what made it."""
