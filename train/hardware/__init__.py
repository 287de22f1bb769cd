"""What this machine can do: precision, speed and memory."""
