"""Folders of pictures in, trustworthy arrays out."""
