"""`fnet-t5 launch`."""
