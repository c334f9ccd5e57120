"""Experiments: resumable grids of small training runs, one module per question (notebooks 4, 6 and 7)."""
