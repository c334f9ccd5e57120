"""Image folders in, checked arrays out."""
