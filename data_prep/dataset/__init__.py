"""The dataset folder: Megatron's indexed files, packed rows, the manifest."""
