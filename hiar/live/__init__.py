"""`hiar live`: a page that shows endless videos of students side by side; viewers can change the prompt meanwhile."""
