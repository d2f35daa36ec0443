"""VBench, the official package: run in an environment of its own, asked and answered in JSON lines."""
