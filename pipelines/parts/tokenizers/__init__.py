"""Tokenizers, from folders and from the bytes that single files embed."""
