"""Models of equal parameters or equal FLOPs, for fair comparison."""
