"""Sizes and pixels of pictures."""
