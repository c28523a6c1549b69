"""What tests share: datasets, recipes, processes, and the scripts that tests start."""
