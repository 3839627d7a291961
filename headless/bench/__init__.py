"""The command ``bench``: times and memory of the pack beside those of plain diffusers calls on the same files."""
