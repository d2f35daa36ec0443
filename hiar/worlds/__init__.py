"""Worlds that a generator is trained in and generates."""
