"""Sources of text, and how they become batches of token ids."""
