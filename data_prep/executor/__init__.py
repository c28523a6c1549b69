"""Ray: sessions and workers."""
