"""Hand-ins of a class and their grading: the file, the rubric, and the checks."""
