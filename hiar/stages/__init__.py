"""The steps of an experiment: each reads artifacts, writes artifacts, and knows nothing of DVC or Prefect."""
