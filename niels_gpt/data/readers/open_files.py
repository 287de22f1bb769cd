"""Open regular files; decompress gzip and zstd, and refuse files that their first bytes show not to be text."""

import gzip
import io
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from niels_gpt.errors import ConfigError, DataError

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
WITH_HF = "data=hf data.repo=FOLDER reads it"
UTF_8 = "save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"
NOT_TEXT = {
    b"PAR1": ("Parquet", WITH_HF),
    b"ARROW1": ("Arrow", WITH_HF),
    b"\xff\xfe": ("UTF-16", UTF_8),
    b"\xfe\xff": ("UTF-16", UTF_8),
    b"%PDF-": ("PDF", "save its text in a file: pdftotext OLD NEW"),
    b"PK\x03\x04": ("a zip archive or an office document", "unpack it, or save it as text"),
}


@contextmanager
def open_file(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file; an OSError becomes a DataError that names the file."""
    try:
        # Checked before opening, because opening a FIFO would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: not a regular file", "name a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        error.filename = path
        refuse_unreadable(error)


def refuse_unreadable(error: OSError) -> NoReturn:
    """Raise DataError naming the file or folder of an OSError."""
    reason = f"{error.filename}: cannot be read ({error.strerror or error})"
    raise DataError(reason, "check the path and its permissions") from error


@contextmanager
def open_text(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file of text, decompressed. DataError naming the place of damage, or the kind of what is not text."""
    damage: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    with open_file(path) as file:
        try:
            content, head = file, file.peek()
            if head.startswith(GZIP):
                content = io.BufferedReader(gzip.GzipFile(fileobj=file))
            elif head.startswith(ZSTD):
                zstd = _import_zstd(path)
                damage += (zstd.ZstdError,)
                content = io.BufferedReader(zstd.ZstdFile(file))
            head = content.peek()
            for start, (kind, hint) in NOT_TEXT.items():
                if head.startswith(start):
                    raise DataError(f"{path}: {kind}, not text in UTF-8", hint)
            yield content
        except damage as error:
            place = f"near byte {file.tell()} of {path.stat().st_size}"
            raise DataError(f"{path}: damaged {place} ({error})", "copy or download the file again") from error


def _import_zstd(path: Path) -> Any:
    try:
        return import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ModuleNotFoundError as error:
        reason = f"{path}: compressed with zstd, for which a package is missing"
        raise ConfigError(reason, "pip install 'niels_gpt[zst]'") from error
