"""Networks: the causal Wan transformer with its caches, text encoders, codecs, and how they are kept in a folder."""
