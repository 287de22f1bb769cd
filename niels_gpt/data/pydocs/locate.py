"""Find the sources of the standard library and of installed packages without running them."""

import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from niels_gpt.errors import DataError

# Tests, what is generated, what is another's, and _pyio, whose docstrings are those of io once more.
SKIPPED = {
    *("test", "tests", "idle_test", "turtledemo", "_bundled"),
    *("lib2to3", "pydoc_data", "encodings", "_pyio", "__pycache__"),
}
# What people call a module, where the file has another name.
PUBLIC_MODULES = {"posixpath": "os.path", "genericpath": "os.path", "posix": "os"}


def source_files(packages: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (module, file) of the standard library, then of each package."""
    files = _walk(Path(sysconfig.get_path("stdlib")), "")
    return files + [found for package in packages for found in _files_of(package)]


def state_of(package: str) -> str:
    """Return a hash of a package's version and of the names and sizes of its files, without reading them."""
    try:
        version = metadata.version(package.partition(".")[0])
    except (metadata.PackageNotFoundError, ValueError):  # not installed under this name, or an empty name
        version = ""
    facts = [(name, path.stat().st_size) for name, path in _files_of(package)]
    return hashlib.sha256(repr((version, facts)).encode()).hexdigest()[:16]


def _files_of(package: str) -> list[tuple[str, Path]]:
    root = _locate(package)
    found = [(package, root)] if root.is_file() else _walk(root, f"{package}.")
    return [f for f in found if f[1].suffix == ".py"]


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


def source_of(path: Path) -> str:
    """Return the text of a source file, or none where it cannot be decoded."""
    try:
        return importlib.util.decode_source(path.read_bytes())
    except (UnicodeDecodeError, SyntaxError):  # an encoding that is not what the file says
        return ""
