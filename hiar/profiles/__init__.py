"""Ways of scoring videos: what is measured, how it becomes one figure a video, and what a result says of its making."""
