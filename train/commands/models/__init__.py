"""The sub-commands that use a trained model."""
