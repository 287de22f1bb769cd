"""Describe modules written in C by importing them, since they have no source to parse."""

import ast
import importlib
import inspect
import types
import warnings
from collections.abc import Iterator

from niels_gpt.data.pydocs.locate import PUBLIC_MODULES
from niels_gpt.data.pydocs.parse import signature
from niels_gpt.data.pydocs.questions import Kind, Subject

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


def compiled(name: str) -> Iterator[Subject]:
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
    """Return the arguments as `signature` does, or None where the module does not tell them.

    inspect.signature evaluates the defaults, with a result that depends on what has been imported.
    """
    told = getattr(value, "__text_signature__", None) or "?"
    try:
        [function] = ast.parse(f"def f{told.replace('$', '')}: ...").body
    except SyntaxError:  # none, or with a default that is no Python
        return None
    assert isinstance(function, ast.FunctionDef)
    # The dollar marks the argument that a caller does not write: self, type or module.
    arguments = signature(function.args, bound="$" in told)
    return None if arguments == ("*args", "**kwargs") else arguments
