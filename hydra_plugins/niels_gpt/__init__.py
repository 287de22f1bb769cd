"""Hydra's plugins of niels_gpt: the launcher `isolated`, and configs of the user's own."""
