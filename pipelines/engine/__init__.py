"""The loaded weights, and the cheapest way from what is loaded to what a run asks for."""
