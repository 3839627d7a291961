"""Where a part's weights and configuration come from: a component of a diffusers folder, or a single file."""
