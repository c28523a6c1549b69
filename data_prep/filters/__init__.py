"""Which documents stay, and how often each is read."""
