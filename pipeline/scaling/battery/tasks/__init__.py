"""The tasks of the battery, one file for each family; `catalogue.py` has them by name."""
