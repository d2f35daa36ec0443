"""The page that shows an experiment: its template, style and script, and its charts."""
