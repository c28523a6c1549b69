"""Raw text to packed token files: readers, tokenizer, Megatron token files, row packing, and a manifest over all of it."""
