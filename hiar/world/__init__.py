"""The procedural captioned video world: what it shows, how it is told, and an oracle that knows all of it."""
