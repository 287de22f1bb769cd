"""Text that every Python installation carries: docstrings, comments, language topics, code if asked for."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import platform
import re
import sys
import sysconfig
import textwrap
import types
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NamedTuple

from niels_gpt.config import SourceCfg
from niels_gpt.data import pydocs_dialogues
from niels_gpt.data.pydocs_dialogues import Kind, Subject, dialogues_about
from niels_gpt.data.records import Dialogue, Document
from niels_gpt.errors import DataError

MIN_CHARS = 40
# Tests, what is generated, what is another's, and _pyio, whose docstrings are those of io once more.
SKIPPED = {
    *("test", "tests", "idle_test", "turtledemo", "_bundled"),
    *("lib2to3", "pydoc_data", "encodings", "_pyio", "__pycache__"),
}
# Modules written in C, without a twin in Python, whose import does nothing but define names
# (that of readline, for one, touches the terminal).
COMPILED = (
    "_abc _blake2 _bz2 _codecs _collections _contextvars _csv _functools _hashlib _io _lzma _queue _random "
    "_socket _sqlite3 _sre _ssl _stat _string _struct _thread _tracemalloc _typing _uuid _warnings _weakref "
    "array atexit binascii builtins cmath errno faulthandler fcntl gc grp itertools marshal math mmap posix "
    "pwd pyexpat resource select sys syslog termios time unicodedata zlib"
)
MEMBERS: dict[Kind, tuple[type, ...]] = {
    "attribute": (types.GetSetDescriptorType, types.MemberDescriptorType),
    "method": (types.MethodDescriptorType, types.ClassMethodDescriptorType, staticmethod),
}
# What people call a module, where the file has another name.
PUBLIC_MODULES = {"posixpath": "os.path", "genericpath": "os.path", "posix": "os"}


class Module(NamedTuple):
    """What one module holds; `exported` is its __all__, `imported` the (module, name) pairs it imports."""

    name: str
    subjects: list[Subject]
    comments: Sequence[str] = ()
    exported: frozenset[str] | None = None
    imported: Sequence[tuple[str, str]] = ()


def documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield a document for each object, comment, topic and (cfg.code) file, always in the same order."""
    seen: set[bytes] = set()
    for name, header, body in _texts(cfg):
        # The header says whose text it is: the same words under another name are no new text.
        key = hashlib.sha256(" ".join(body.lower().split()).encode()).digest()
        text = _tidy(f"{header}\n\n{body}")
        if key not in seen and len(text) >= MIN_CHARS:
            seen.add(key)
            yield Document(name, text)


def dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield questions and answers about the objects; all dialogues about an object carry its name."""
    return dialogues_about([s._replace(doc=_tidy(s.doc)) for s in _subjects(_modules(cfg))])


def fingerprint(cfg: SourceCfg) -> str:
    """Return a text that differs wherever the documents or the dialogues could."""
    library = Path(sysconfig.get_path("stdlib"))
    # Distributions leave parts of the standard library out, hence the listings beside the version.
    listings = [sorted(f.name for f in d.iterdir()) for d in (library, library / "lib-dynload") if d.is_dir()]
    recipe = [Path(f).read_bytes() for f in (__file__, pydocs_dialogues.__file__)]
    found = repr((sys.version, sys.platform, sys.builtin_module_names, listings, recipe))
    digest = hashlib.sha256(found.encode()).hexdigest()[:16]
    packages = ",".join(f"{name}={_version(name)}" for name in cfg.packages)
    return f"pydocs {platform.python_version()} {digest} packages={packages} code={cfg.code}"


def _texts(cfg: SourceCfg) -> Iterator[tuple[str, str, str]]:
    """Yield (name, header, body) of all there is to read."""
    modules = _modules(cfg)
    yield from ((s.name, _header(s), s.doc) for s in _subjects(modules) if _is_prose(s.doc))
    yield from ((f"{m.name}#comments", "", text) for m in modules for text in m.comments)
    yield from ((f"topic {key}", "", text) for key, text in _topics() if _is_prose(text))
    if cfg.code:
        yield from ((f"{name}#source", "", _source(path)) for name, path in _files(cfg))


def _header(subject: Subject) -> str:
    """Return the line that the document of an object begins with, such as class array.array(typecode)."""
    label = f"{subject.kind} " if subject.kind in ("module", "class", "attribute") else ""
    arguments = "" if subject.arguments is None else f"({', '.join(subject.arguments)})"
    return f"{label}{subject.name}{arguments}"


def _topics() -> list[tuple[str, str]]:
    """Return the chapters of the language reference that help() shows."""
    try:
        return sorted(importlib.import_module("pydoc_data.topics").topics.items())
    except ImportError:  # a distribution may leave them out
        return []


def _tidy(text: str) -> str:
    """Return the text without memory addresses, which differ from run to run, and without trailing blanks."""
    text = re.sub(r" at 0x[0-9A-Fa-f]+", "", text).replace("\f", "")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _is_prose(text: str) -> bool:
    letters = sum(c.isalpha() or c.isspace() for c in text)
    readable = letters >= 0.6 * len(text) and not re.search(r"[\x00-\x08\x0e-\x1f\ufffd]", text)
    return readable and len(text.split()) >= 3


def _modules(cfg: SourceCfg) -> list[Module]:
    """Return what all modules hold: those that have a source file first, in their order."""
    modules = [_read(name, path) for name, path in _files(cfg)]
    return modules + [Module(name, list(_compiled(name))) for name in COMPILED.split()]


def _subjects(modules: list[Module]) -> Iterator[Subject]:
    """Yield all objects under the names that people use: asyncio.run, not asyncio.runners.run."""
    exported = {m.name: m.exported for m in modules}
    moved: dict[tuple[str, str], str] = {}
    for m in sorted(modules, key=lambda m: m.name):
        for source, name in m.imported:
            if _passes_on(m, source, name):
                moved.setdefault((source, name), m.name)
                if name == "*":
                    moved.update({(source, n): m.name for n in exported.get(source) or ()})
    yield from (_renamed(s, moved, exported) for m in modules for s in m.subjects)


def _passes_on(module: Module, source: str, name: str) -> bool:
    """Whether what a module imports is meant to be found under the module's own name."""
    part, hidden = source.startswith(f"{module.name}."), source.startswith("_") or "._" in source
    if module.name.startswith("_") or "._" in module.name or name.startswith("_"):
        return False
    if name == "*" or module.exported is None:
        return part or (hidden and name == "*")
    return (part or hidden) and name in module.exported


def _renamed(
    subject: Subject, moved: dict[tuple[str, str], str], exported: dict[str, frozenset[str] | None]
) -> Subject:
    """Return the subject under the name it is passed on by, and that in turn by another module perhaps."""
    top = subject.short.split(".")[0]
    star = moved.get((subject.module, "*")) if exported.get(subject.module) is None else None
    module = moved.get((subject.module, top), star)
    if module is None or subject.kind == "module":
        return subject
    return _renamed(subject._replace(name=f"{module}.{subject.short}", module=module), moved, exported)


# Source files are parsed, never imported: reading a package runs nothing of it.


def _files(cfg: SourceCfg) -> list[tuple[str, Path]]:
    """Return (module, file) of the standard library, then of each package."""
    files = _walk(Path(sysconfig.get_path("stdlib")), "")
    for package in cfg.packages:
        root = _locate(package)
        found = [(package, root)] if root.is_file() else _walk(root, f"{package}.")
        files += [f for f in found if f[1].suffix == ".py"]
    return files


def _walk(root: Path, prefix: str) -> list[tuple[str, Path]]:
    found = []
    for folder, inner, names in os.walk(root):
        # site-packages, lib-dynload and the like are no identifiers.
        inner[:] = sorted(d for d in inner if d.isidentifier() and d not in SKIPPED)
        for path in (Path(folder, n) for n in names if n.endswith(".py")):
            name = prefix + ".".join(path.relative_to(root).with_suffix("").parts)
            name = name.removesuffix("__init__").removesuffix(".")
            if path.stem not in SKIPPED and not path.stem.startswith(("test_", "conftest")):
                found.append((PUBLIC_MODULES.get(name, name), path))
    return sorted(found)


def _locate(package: str) -> Path:
    """Return the folder or file of an installed package, part by part: find_spec("a.b") would import a."""
    search: list[str] | None = None
    origin: str | None = None
    name = ""
    for part in package.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = _spec(name, search)
        search = list(spec.submodule_search_locations or []) if spec else []
        origin = spec.origin if spec else None
    found = Path(search[0] if search else origin or "")
    if (search and found.is_dir()) or (origin and found.suffix == ".py"):
        return found
    hint = f"install it (pip install {package}), or leave it out of data.packages"
    raise DataError(
        f"data.packages names {package!r}, which is not an installed package with Python sources", hint
    )


def _spec(name: str, search: list[str] | None) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name) if search is None else PathFinder.find_spec(name, search)
    except ValueError:  # an empty name, or a module that was made by hand
        return None


def _version(package: str) -> str:
    """Return the version of a package or, where it has none of its name, what tells its files from others."""
    root = _locate(package)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
        stamps = repr([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])
        return hashlib.sha256(stamps.encode()).hexdigest()[:16]


def _source(path: Path) -> str:
    try:
        return importlib.util.decode_source(path.read_bytes())
    except (UnicodeDecodeError, SyntaxError):  # an encoding that is not what the file says
        return ""


def _read(name: str, path: Path) -> Module:
    source = _source(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # a template, or written for another version
        return Module(name, [])
    module = Subject(name, name, "module", None, ast.get_docstring(tree) or "")
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    subjects = [module, *_members(tree.body, name, name)]
    return Module(name, subjects, _comments(source, tree), _exported(tree), _imported(tree, package))


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
            arguments = _signature(start, bound=True) if start else None
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
    arguments = None if kind == "attribute" else _signature(node.args, bound)
    yield Subject(f"{owner}.{node.name}", module, kind, arguments, ast.get_docstring(node) or "")


def _signature(args: ast.arguments, bound: bool) -> tuple[str, ...]:
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


def _comments(source: str, tree: ast.Module) -> list[str]:
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
    return [t for t in texts if "\n" in t and _is_prose(t) and not _is_code(t)]


def _is_code(comment: str) -> bool:
    if re.search(r"copyright|licen[sc]e|coding[:=]", comment, re.IGNORECASE):
        return True
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(textwrap.dedent(comment))
    except (SyntaxError, ValueError):
        return False
    return True


# Modules written in C have no source to read: what they define is looked at.


def _compiled(name: str) -> Iterator[Subject]:
    """Yield the objects that a module written in C defines, or none where this Python has no such module."""
    try:
        with warnings.catch_warnings(action="ignore"):
            module = importlib.import_module(name)
    except ImportError:
        return
    public = PUBLIC_MODULES.get(name, name)
    if getattr(module, "__file__", "").endswith(".py"):  # written in Python after all, and read already
        return
    yield Subject(public, public, "module", None, inspect.cleandoc(module.__doc__ or ""))
    for label in sorted(vars(module)):
        # What a program may replace (sys.excepthook) is kept in the original between underscores.
        value = vars(module).get(f"__{label}__", vars(module)[label])
        if isinstance(value, types.BuiltinFunctionType) and not label.startswith("__"):
            yield _described(value, label, public, "function")
        elif isinstance(value, type) and value.__name__ == label:
            yield from _compiled_class(value, PUBLIC_MODULES.get(value.__module__, value.__module__))


def _compiled_class(value: type, module: str) -> Iterator[Subject]:
    yield _described(value, value.__qualname__, module, "class")
    for label, member in sorted(vars(value).items()):
        if label.startswith("__"):
            continue
        for kind, kinds in MEMBERS.items():
            if isinstance(member, kinds):
                # Looked up on the class, a static or class method is the function that has the signature.
                yield _described(getattr(value, label), f"{value.__qualname__}.{label}", module, kind)


def _described(value: object, short: str, module: str, kind: Kind) -> Subject:
    name = short if module == "builtins" else f"{module}.{short}"
    doc = getattr(value, "__doc__", None)
    return Subject(name, module, kind, _told(value), inspect.cleandoc(doc) if isinstance(doc, str) else "")


def _told(value: object) -> tuple[str, ...] | None:
    """Return the arguments as _signature does, or None where the module does not tell them.

    inspect.signature evaluates the defaults, with a result that depends on what has been imported.
    """
    told = getattr(value, "__text_signature__", None) or "?"
    try:
        [function] = ast.parse(f"def f{told.replace('$', '')}: ...").body
    except SyntaxError:  # none, or with a default that is no Python
        return None
    assert isinstance(function, ast.FunctionDef)
    # The dollar marks the argument that a caller does not write: self, type or module.
    arguments = _signature(function.args, bound="$" in told)
    return None if arguments == ("*args", "**kwargs") else arguments
