"""Runs workflow files without the editor: in this process, or on a running ComfyUI server."""
