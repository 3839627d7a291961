"""Files that hold tensors: one module per container format, each with a checked header and a reader."""
