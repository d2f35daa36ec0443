"""All servers of the project on one machine, and what works for them (`make stack`)."""
