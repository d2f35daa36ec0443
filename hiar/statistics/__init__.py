"""What can be said of a difference: between two contenders, over videos and over training seeds."""
