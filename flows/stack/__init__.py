"""All servers of the project on one machine, with workers and the watcher (`make stack`)."""
