"""Comparisons of many small trainings, each of them resumable: notebooks 4, 6 and 7."""
