"""Training objectives: pure functions of tensors and a denoiser, each citing its equation."""
