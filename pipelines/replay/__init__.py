"""A training job's previews once more: a grid of checkpoints, samples and strengths, each cell rendered once."""
