"""The commands of `python -m helpers`: one dataclass each, whose fields are the options."""
