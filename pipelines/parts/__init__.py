"""Parts that several models share: their single files, and how they are built."""
