"""Split a file of JSON lines, or a JSON array, into its rows; only one row is in memory."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from niels_gpt.data.readers.open_files import open_text
from niels_gpt.errors import DataError

MAX_LINE = 16 << 20  # bytes of a row with its end
READ_CHARS = 1 << 20
_BEFORE_ROW = re.compile(r"\s*([\[,])\s*")


def read_json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and content of each row, a ValueError if it is bad. DataError if the file is damaged."""
    with open_text(path) as file:
        is_array = file.peek().removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        for place, row in _split_array(path, file) if is_array else _split_lines(path, file):
            try:
                content = from_json(row.rstrip())  # refuses half surrogate pairs too
            except ValueError as error:
                content = ValueError(f"not JSON ({str(error).replace('line 1 column', 'byte')})")
            if len(row) > MAX_LINE:
                content = ValueError(f"longer than {MAX_LINE >> 20} MB")
            yield place, content


def _split_lines(path: Path, file: io.BufferedReader) -> Iterator[tuple[str, bytes]]:
    """Yield the lines that are not blank; of one above MAX_LINE only the beginning."""
    parts = iter(partial(file.readline, MAX_LINE + 1), b"")
    for number, part in enumerate(parts, 1):
        line = part.removeprefix(codecs.BOM_UTF8)
        while len(part) > MAX_LINE and not part.endswith(b"\n"):
            part = next(parts, b"")
        if line.strip():
            yield f"{path}:{number}", line


def _split_array(path: Path, file: io.BufferedReader) -> Iterator[tuple[str, bytes]]:
    """Yield the elements of an array. Nothing tells where a row of broken JSON ends: it is always a DataError."""
    decode = json.JSONDecoder().raw_decode
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
    left, number, why = "", 0, "the array has no end"
    while chunk := text.read(READ_CHARS):
        left, at = left + chunk, 0
        while (before := _BEFORE_ROW.match(left, at)) and before[1] == "[,"[number > 0]:
            try:
                end = decode(left, before.end())[1]
            except (ValueError, RecursionError) as error:  # broken, or not yet whole
                why = str(error).partition(":")[0]
                break
            number, at = number + 1, end
            yield f"{path}: row {number}", left[before.end() : end].encode(errors="surrogateescape")
        left = left[at:]
        if len(left) > MAX_LINE:
            why = f"or longer than {MAX_LINE >> 20} MB"
            break
    if left.strip() != "]" and (number or left.split() not in (["[]"], ["[", "]"])):
        hint = f"mend the array, or write one row per line: jq -c '.[]' {path.name} > rows.jsonl"
        raise DataError(f"{path}: row {number + 1}: not JSON ({why})", hint)
