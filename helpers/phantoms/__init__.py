"""The embedded sample: procedural dermoscopic images of seven diagnoses."""
