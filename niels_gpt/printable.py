"""Escape control characters in untrusted text."""


def printable(line: str) -> str:
    """Return a line in which every character can be seen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def harmless(text: str) -> str:
    """Return text of several lines, its space of any kind as it is."""
    return "".join(c if c.isspace() else printable(c) for c in text)
