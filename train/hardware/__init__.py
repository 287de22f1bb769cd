"""Check and measure this machine: precision, speed and memory."""
