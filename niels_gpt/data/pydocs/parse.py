"""Parse a Python source for its objects, signatures and docstrings, without importing it."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from niels_gpt.data.pydocs.locate import read_source

Kind = Literal["module", "class", "function", "method", "attribute"]


class DocumentedObject(NamedTuple):
    """A documented object; `arguments` are as in its signature, with / and *, or None if unknown."""

    name: str
    module: str
    kind: Kind
    arguments: tuple[str, ...] | None
    doc: str

    @property
    def short(self) -> str:
        """The name within its module."""
        return self.name.removeprefix(self.module + ".")


def parse_module(name: str, path: Path) -> list[DocumentedObject]:
    """Return the objects that a source file defines, or none if this Python cannot parse it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(read_source(path))
    except (SyntaxError, ValueError, RecursionError):  # a template, or written for another version
        return []
    return [
        DocumentedObject(name, name, "module", None, ast.get_docstring(tree) or ""),
        *_walk_members(tree.body, name, name),
    ]


def _walk_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body and of its branches: some objects are defined once per platform."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _walk_statements([*node.body, *node.orelse])
        if isinstance(node, ast.Try):
            yield from _walk_statements([s for handler in node.handlers for s in handler.body])


def _walk_members(body: list[ast.stmt], owner: str, module: str) -> Iterator[DocumentedObject]:
    """Yield the classes and functions that a module or class defines, and those within the classes."""
    for node in _walk_statements(body):
        if isinstance(node, ast.ClassDef):
            name = f"{owner}.{node.name}"
            functions = {n.name: n.args for n in node.body if isinstance(n, ast.FunctionDef)}
            start = functions.get("__init__") or functions.get("__new__")
            arguments = list_arguments(start, bound=True) if start else None
            yield DocumentedObject(name, module, "class", arguments, ast.get_docstring(node) or "")
            yield from _walk_members(node.body, name, module)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
            if marks & {"setter", "deleter", "overload"}:
                continue
            kind: Kind = "function" if owner == module else "method"
            if marks & {"property", "cached_property", "abstractproperty"}:
                kind = "attribute"
            bound = kind == "method" and "staticmethod" not in marks
            arguments = None if kind == "attribute" else list_arguments(node.args, bound)
            yield DocumentedObject(f"{owner}.{node.name}", module, kind, arguments, ast.get_docstring(node) or "")


def list_arguments(args: ast.arguments, bound: bool) -> tuple[str, ...]:
    """Return the arguments as they are written, without annotations and, if bound, without self."""
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    shown = [_show_argument(a.arg, d) for a, d in zip(positional, defaults, strict=True)]
    if args.posonlyargs:
        shown.insert(len(args.posonlyargs), "/")
    shown = shown[1:] if bound else shown
    if args.vararg or args.kwonlyargs:
        shown.append(f"*{args.vararg.arg if args.vararg else ''}")
    shown += [_show_argument(a.arg, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    shown += [f"**{args.kwarg.arg}"] if args.kwarg else []
    return tuple(shown[1:] if shown[:1] == ["/"] else shown)


def _show_argument(name: str, default: ast.expr | None) -> str:
    if default is None:
        return name
    value = ast.unparse(default)
    return f"{name}={value if len(value) <= 20 and '<' not in value else '...'}"
