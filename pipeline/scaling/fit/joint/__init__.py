"""One fit of the loss surfaces of all arms together, and what follows from it. numpy and scipy alone."""
