"""The S3 store behind the project's DVC remote: its contents, their integrity, garbage collection, links to reports."""
