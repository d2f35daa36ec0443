"""`hiar live`: a page on which students make endless videos side by side while people watch and change the prompt."""
