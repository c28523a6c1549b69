"""`fnet-t5 data`, `prepare` and `tokenizer`."""
