"""The synthetic battery: small models trained on tasks whose answers need the order of the input."""
