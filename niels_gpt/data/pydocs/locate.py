"""Find the sources of the standard library and of installed packages without running them."""

import importlib.util
import os
import sysconfig
from collections.abc import Sequence
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


def find_source_files(packages: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (module, file) of the standard library, then of each package."""
    files = _find_modules(Path(sysconfig.get_path("stdlib")), "")
    return files + [found for package in packages for found in _find_package(package)]


def read_source(path: Path) -> str:
    """Return the text of a source file, or none if it cannot be decoded."""
    try:
        return importlib.util.decode_source(path.read_bytes())
    except (UnicodeDecodeError, SyntaxError):  # the file declares another encoding than it has
        return ""


def _find_package(package: str) -> list[tuple[str, Path]]:
    """Return (module, file) of an installed package, of a part of one, or of a module."""
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top) if top else None  # of "a.b" it would import a
    place = ""
    if spec and spec.submodule_search_locations:
        place = os.path.join(spec.submodule_search_locations[0], *inner)
        if os.path.isdir(place):
            return _find_modules(Path(place), f"{package}.")
        place += ".py"
    elif spec and spec.origin and not inner:
        place = spec.origin
    if place.endswith(".py") and os.path.isfile(place):
        return [(package, Path(place))]
    raise DataError(
        f"data.packages names {package!r}, which is not an installed package with Python sources",
        f"install it (pip install {package}), or leave it out of data.packages",
    )


def _find_modules(root: Path, prefix: str) -> list[tuple[str, Path]]:
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
