"""Everything distributed: objectives, batches, the mesh, training, checkpoints, tracking, evaluation."""
