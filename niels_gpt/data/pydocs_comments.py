"""The comments of a Python source that are prose."""

import ast
import re
import textwrap
import warnings


def comments_of(source: str, tree: ast.Module) -> list[str]:
    """Return the comments of two lines or more that are prose: neither code nor a licence."""
    quoted = _quoted(tree)
    blocks: list[list[str]] = [[]]
    for number, line in enumerate(source.splitlines(), 1):
        line = line.strip()
        if not line.startswith("#") or number in quoted:
            blocks.append([])
        elif not line.startswith("#!"):
            text = line.lstrip("#").removeprefix(" ").rstrip()
            blocks[-1].append(text if any(map(str.isalnum, text)) else "")
    texts = ["\n".join(block).strip("\n") for block in blocks if len(block) > 1]
    return [t for t in texts if "\n" in t and is_prose(t) and not _is_code(t)]


def _quoted(tree: ast.Module) -> set[int]:
    """Return the lines that begin within a string; a node of one line has none, and is not looked into."""
    lines: set[int] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        for node in ast.iter_child_nodes(nodes.pop()):
            first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 1)
            if isinstance(node, ast.Constant | ast.JoinedStr):
                lines.update(range(first + 1, last + 1))
            elif last > first:
                nodes.append(node)
    return lines


def _is_code(comment: str) -> bool:
    if re.search(r"copyright|licen[sc]e|coding[:=]", comment, re.IGNORECASE):
        return True
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(textwrap.dedent(comment))
    except (SyntaxError, ValueError):
        return False
    return True


def is_prose(text: str) -> bool:
    """Whether a text is one to read: mostly letters, of three words or more, without control characters."""
    letters = sum(c.isalpha() or c.isspace() for c in text)
    readable = letters >= 0.6 * len(text) and not re.search(r"[\x00-\x08\x0e-\x1f\ufffd]", text)
    return readable and len(text.split()) >= 3
