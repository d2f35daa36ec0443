"""HiAR Lab: hierarchical denoising for long autoregressive video, from teacher to scored comparison."""
