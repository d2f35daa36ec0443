"""What MLflow gets to know: stages write it down (`stage`, `spool`), a process of its own passes it on (`sender`)."""
