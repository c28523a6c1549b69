"""What `fnet-t5 bench` measures: arms side by side, in one process and in turns."""
