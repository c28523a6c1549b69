"""Raw text: where it lies, how its bytes become blocks of lines, and lines documents."""
