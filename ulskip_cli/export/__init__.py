"""A schedule taken out of ulskip: as an ordinary checkpoint, a GGUF file, a merge recipe, or a file of its own."""
