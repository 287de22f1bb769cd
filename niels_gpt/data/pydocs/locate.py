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

# Tests, generated code, vendored code, and _pyio, whose docstrings repeat those of io.
SKIPPED = {
    *("test", "tests", "idle_test", "turtledemo", "_bundled"),
    *("lib2to3", "pydoc_data", "encodings", "_pyio", "__pycache__"),
}
# Modules that people know by another name than that of their file.
PUBLIC_MODULES = {
    **{"posixpath": "os.path", "genericpath": "os.path", "posix": "os"},
    **{"_collections_abc": "collections.abc", "_pydatetime": "datetime", "_pydecimal": "decimal"},
}


def find_sources(packages: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (module, file) of the standard library, then of each package."""
    files = _walk(Path(sysconfig.get_path("stdlib")), "")
    return files + [found for package in packages for found in _find_package(package)]


def hash_package(package: str) -> str:
    """Return a hash of a package's version and of the names and sizes of its files, without reading them."""
    try:
        version = metadata.version(package.partition(".")[0])
    except (metadata.PackageNotFoundError, ValueError):  # not installed under this name, or an empty name
        version = ""
    facts = [(name, path.stat().st_size) for name, path in _find_package(package)]
    return hashlib.sha256(repr((version, facts)).encode()).hexdigest()[:16]


def read_source(path: Path) -> str:
    """Return the text of a source file, or none if it cannot be decoded."""
    try:
        return importlib.util.decode_source(path.read_bytes())
    except (UnicodeDecodeError, SyntaxError):  # the file declares another encoding than it has
        return ""


def _find_package(package: str) -> list[tuple[str, Path]]:
    """Return (module, file) of a package. Part by part: find_spec("a.b") would import a."""
    search: list[str] | None = None
    origin: str | None = None
    name = ""
    for part in package.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = _find_spec(name, search)
        search = list(spec.submodule_search_locations or []) if spec else []
        origin = spec.origin if spec else None
    if search and Path(search[0]).is_dir():
        return _walk(Path(search[0]), f"{package}.")
    if origin and origin.endswith(".py"):
        return [(package, Path(origin))]
    raise DataError(
        f"data.packages names {package!r}, which is not an installed package with Python sources",
        f"install it (pip install {package}), or leave it out of data.packages",
    )


def _find_spec(name: str, search: list[str] | None) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name) if search is None else PathFinder.find_spec(name, search)
    except ValueError:  # an empty name, or a module that was made by hand
        return None


def _walk(root: Path, prefix: str) -> list[tuple[str, Path]]:
    found = []
    for folder, inner, names in os.walk(root):
        # site-packages, lib-dynload and the like are not identifiers.
        inner[:] = sorted(d for d in inner if d.isidentifier() and d not in SKIPPED)
        for path in (Path(folder, n) for n in names if n.endswith(".py")):
            name = prefix + ".".join(path.relative_to(root).with_suffix("").parts)
            name = name.removesuffix("__init__").removesuffix(".")
            if path.stem not in SKIPPED and not path.stem.startswith(("test_", "conftest")):
                found.append((PUBLIC_MODULES.get(name, name), path))
    return sorted(found)
