"""Running a ladder on this machine, and its report."""
