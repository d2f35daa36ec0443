"""Statistics of differences between two contenders, over videos and over training seeds."""
