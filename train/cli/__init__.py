"""Entry, output and exit of commands."""
