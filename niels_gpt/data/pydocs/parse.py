"""Parse a Python source for signatures, docstrings and comments, without importing it."""

import ast
import importlib.util
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from niels_gpt.data.pydocs.locate import source_of
from niels_gpt.data.pydocs.questions import Kind, Subject


class Module(NamedTuple):
    """What one module holds; `exported` is its __all__, `imported` the (module, name) pairs it imports."""

    name: str
    subjects: list[Subject]
    comments: Sequence[str] = ()
    exported: frozenset[str] | None = None
    imported: Sequence[tuple[str, str]] = ()


def parsed(name: str, path: Path) -> Module:
    """Return what a source file holds: nothing, if it is no Python of this version."""
    source = source_of(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # a template, or written for another version
        return Module(name, [])
    module = Subject(name, name, "module", None, ast.get_docstring(tree) or "")
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    subjects = [module, *_members(tree.body, name, name)]
    return Module(name, subjects, comments_of(source, tree), _exported(tree), _imported(tree, package))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield what stands in a body, and in its branches too: much is defined once per platform."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
        if isinstance(node, ast.Try):
            yield from _statements([s for handler in node.handlers for s in handler.body])


def _members(body: list[ast.stmt], owner: str, module: str) -> Iterator[Subject]:
    """Yield the classes and functions that a module or class defines, and those within the classes."""
    for node in _statements(body):
        if isinstance(node, ast.ClassDef):
            name = f"{owner}.{node.name}"
            functions = {n.name: n.args for n in node.body if isinstance(n, ast.FunctionDef)}
            start = functions.get("__init__") or functions.get("__new__")
            arguments = signature(start, bound=True) if start else None
            yield Subject(name, module, "class", arguments, ast.get_docstring(node) or "")
            yield from _members(node.body, name, module)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _function(node, owner, module)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str, module: str) -> Iterator[Subject]:
    marks = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
    if marks & {"setter", "deleter", "overload"}:
        return
    kind: Kind = "function" if owner == module else "method"
    if marks & {"property", "cached_property", "abstractproperty"}:
        kind = "attribute"
    bound = kind == "method" and "staticmethod" not in marks
    arguments = None if kind == "attribute" else signature(node.args, bound)
    yield Subject(f"{owner}.{node.name}", module, kind, arguments, ast.get_docstring(node) or "")


def signature(args: ast.arguments, bound: bool) -> tuple[str, ...]:
    """Return the arguments as they are written, without annotations and, if bound, without self."""
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    shown = [_argument(a.arg, d) for a, d in zip(positional, defaults, strict=True)]
    if args.posonlyargs:
        shown.insert(len(args.posonlyargs), "/")
    shown = shown[1:] if bound else shown
    if args.vararg or args.kwonlyargs:
        shown.append(f"*{args.vararg.arg if args.vararg else ''}")
    shown += [_argument(a.arg, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    shown += [f"**{args.kwarg.arg}"] if args.kwarg else []
    return tuple(shown[1:] if shown[:1] == ["/"] else shown)


def _argument(name: str, default: ast.expr | None) -> str:
    return name if default is None else f"{name}={_short(ast.unparse(default))}"


def _short(default: str) -> str:
    """Return a default as it is, unless it is long or an object that shows itself as <...>."""
    return default if len(default) <= 20 and "<" not in default else "..."


def _exported(tree: ast.Module) -> frozenset[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            try:
                return frozenset(ast.literal_eval(node.value))
            except ValueError:  # put together from those of other modules
                return None
    return None


def _imported(tree: ast.Module, package: str) -> list[tuple[str, str]]:
    nodes = [n for n in _statements(tree.body) if isinstance(n, ast.ImportFrom)]
    dots = [("." * n.level + (n.module or ""), n) for n in nodes if n.level <= package.count(".") + 1]
    sources = [(importlib.util.resolve_name(d, package) if n.level else d, n) for d, n in dots]
    return [(source, alias.name) for source, n in sources for alias in n.names if alias.asname is None]


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
