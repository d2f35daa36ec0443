"""Measurements of walks: what each costs, what a cost model predicts, and drawings of the grid."""
