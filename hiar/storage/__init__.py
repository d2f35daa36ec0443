"""The S3 store behind the project's DVC remote: what lies in it, whether it is whole, what may go, links to reports."""
