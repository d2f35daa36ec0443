"""How the causal student before distillation is made: one module per kind of ``init`` in params.yaml."""
