"""Figures, predictions and the web page."""
