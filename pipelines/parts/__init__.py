"""The networks that models are made of, and what several models share of them."""
