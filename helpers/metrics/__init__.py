"""Image quality, classification and segmentation measures, with confidence intervals."""
