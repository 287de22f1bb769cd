"""How commands start, print and end."""
