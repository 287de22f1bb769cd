"""Text that comes with every Python installation: docstrings, comments and topics."""
