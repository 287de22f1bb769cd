"""Weights on disk: read checkpoints, and export them for other programs."""
