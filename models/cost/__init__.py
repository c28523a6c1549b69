"""Parameters, FLOPs and inference cost in closed form."""
