"""A replay's cells on the workers of a Ray cluster."""
