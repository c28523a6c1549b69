"""The benchmarks of `fnet-t5 bench`: several models in one process, in turns."""
