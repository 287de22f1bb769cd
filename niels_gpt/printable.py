"""Escape control characters in untrusted text, and write numbers with their nouns."""


def escape_line(line: str) -> str:
    """Return a line with every non-printable character escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def escape_text(text: str) -> str:
    """Return text of several lines with its control characters escaped, but for line feeds and tabs."""
    return "".join(c if c in "\n\t" or (c.isspace() and c > "\x9f") else escape_line(c) for c in text)


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun, as in 1 token and 2,000 tokens."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
