"""How the causal student before distillation is made: a module for each kind of ``init`` in params.yaml."""
