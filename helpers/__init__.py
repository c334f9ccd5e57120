"""Sketch2Lesion: from dermoscopy folders to sketches, generators, segmenters and honest numbers."""
