"""VBench, the official package: run in an environment of its own, with requests and answers in JSON lines."""
