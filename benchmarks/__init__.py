"""Measurements of walks: what each costs, what a model of their costs predicts, and pictures of the grid."""
