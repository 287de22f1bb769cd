"""Describe modules written in C by importing them, since they have no source to parse."""

import ast
import importlib
import inspect
import sys
import types
from collections.abc import Iterator

from niels_gpt.data.pydocs.locate import PUBLIC_MODULES
from niels_gpt.data.pydocs.parse import DocumentedObject, Kind, list_arguments

# Modules written in C, without a twin in Python, whose import only defines names
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


def describe_module(name: str) -> Iterator[DocumentedObject]:
    """Yield the objects of a module written in C, or none if this Python lacks the module."""
    module = _import_if_present(name)
    if module is None:
        return
    public = PUBLIC_MODULES.get(name, name)
    twin_name = name.removeprefix("_")
    twin = _import_if_present(twin_name) if twin_name in sys.stdlib_module_names - {name} else None
    yield DocumentedObject(public, public, "module", None, inspect.cleandoc(module.__doc__ or ""))
    for label in sorted(vars(module)):
        # A program may replace sys.excepthook; the original is kept as sys.__excepthook__.
        value = vars(module).get(f"__{label}__", vars(module)[label])
        if isinstance(value, types.BuiltinFunctionType) and not label.startswith("__"):
            home = twin_name if getattr(twin, label, None) is value else public  # functools.reduce
            yield _make_subject(value, label, home, "function")
        elif isinstance(value, type) and value.__name__ == label:
            yield from _describe_class(value, PUBLIC_MODULES.get(value.__module__, value.__module__))


def _import_if_present(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _describe_class(value: type, module: str) -> Iterator[DocumentedObject]:
    yield _make_subject(value, value.__qualname__, module, "class")
    for label, member in sorted(vars(value).items()):
        for kind, kinds in MEMBERS.items():
            if isinstance(member, kinds) and not label.startswith("__"):
                # Looked up on the class, a static or class method is the function that has the signature.
                yield _make_subject(getattr(value, label), f"{value.__qualname__}.{label}", module, kind)


def _make_subject(value: object, short: str, module: str, kind: Kind) -> DocumentedObject:
    name = short if module == "builtins" else f"{module}.{short}"
    doc = getattr(value, "__doc__", None)
    text = inspect.cleandoc(doc) if isinstance(doc, str) else ""
    return DocumentedObject(name, module, kind, _list_arguments(value), text)


def _list_arguments(value: object) -> tuple[str, ...] | None:
    """Return the arguments as `list_arguments` does, or None if the module does not give them.

    inspect.signature would evaluate the defaults, and the result depends on which modules are imported.
    """
    text = getattr(value, "__text_signature__", None) or "?"
    try:
        [function] = ast.parse(f"def f{text.replace('$', '')}: ...").body
    except SyntaxError:  # no signature, or a default that is not Python
        return None
    assert isinstance(function, ast.FunctionDef)
    # The dollar marks the argument that a caller does not write: self, type or module.
    arguments = list_arguments(function.args, bound="$" in text)
    return None if arguments == ("*args", "**kwargs") else arguments
