"""A class hands in and is graded: what is handed in, what earns points, who checks it."""
