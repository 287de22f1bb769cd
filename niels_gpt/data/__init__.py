"""Sources of text, and batches of token ids made from them."""
