"""Generating latent video: one place that denoises a cell, and the walkers that order the cells."""
