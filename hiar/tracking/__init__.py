"""Tracking in MLflow: stages write records to disk (`stage`, `spool`), a separate process sends them (`sender`)."""
