"""Jobs on clusters: the platforms, their cluster files, rendered scripts and submission."""
