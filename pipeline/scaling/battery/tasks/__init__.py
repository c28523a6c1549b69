"""The tasks of the battery, one file for each family; `by_name.py` has them by name."""
