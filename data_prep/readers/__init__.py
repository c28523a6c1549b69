"""Input files, local or remote, as a stream of records."""
