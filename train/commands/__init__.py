"""The program niels_gpt and its sub-commands."""
