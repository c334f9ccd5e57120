"""Sketch2Lesion: from folders of dermoscopic images to sketches, generators, segmenters, classifiers and evaluation."""
