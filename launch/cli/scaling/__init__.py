"""`fnet-t5 scaling`."""
