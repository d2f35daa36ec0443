"""Finite, resumable training: optimisers, averaged weights, checkpoints and the loop."""
