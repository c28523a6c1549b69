"""The engine that runs a step on the mesh, over DeepSpeed."""
