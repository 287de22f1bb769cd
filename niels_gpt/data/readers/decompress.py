"""Decompress gzip and zstd as they are read, and refuse files that their first bytes show not to be text."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from niels_gpt.errors import ConfigError, DataError

GZIP = b"\x1f\x8b"
ZSTD = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")  # the second begins what pzstd writes
WITH_HF = "data=hf data.repo=FOLDER reads it"
UNPACK = "unpack it, or compress it with gzip"
NOT_TEXT = {
    b"PAR1": ("Parquet", WITH_HF),
    b"ARROW1": ("Arrow", WITH_HF),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    b"%PDF-": ("PDF", "save its text in a file: pdftotext OLD NEW"),
    b"PK\x03\x04": ("a zip archive or an office document", "unpack it, or save it as text"),
    b"BZh": ("bzip2", UNPACK),
    b"\xfd7zXZ": ("xz", UNPACK),
}


@contextmanager
def decompress(path: Path, file: io.BufferedReader) -> Iterator[io.BufferedReader]:
    """Yield the content of a file of text, decompressed if its first bytes are those of gzip or zstd.

    DataError naming the place if the file is damaged, or its kind if it is not text.
    """
    content = file
    damage: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    head = file.peek()
    try:
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
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ModuleNotFoundError as error:
        reason = f"{path}: compressed with zstd, for which a package is missing"
        raise ConfigError(reason, "pip install 'niels_gpt[zst]'") from error
    return zstd
