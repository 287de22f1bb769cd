"""Docstrings and help topics of the installed Python, as sample data."""
