"""The network: its blocks and the GPT that stacks them."""
