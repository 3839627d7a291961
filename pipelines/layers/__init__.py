"""How layers hold their weights, and how a model is filled with them."""
