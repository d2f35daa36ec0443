"""Networks: the causal Wan transformer with its KV caches, and generators in folders with text encoder and codec."""
