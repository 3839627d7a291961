"""Beside diffusers: AI Toolkit's own previews, and the nodes of ai-toolkit-inference, where these are given."""
