"""Read rows from files of parquet, arrow, JSON and CSV, a few at a time."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from niels_gpt.data.readers.json_rows import MAX_LINE, read_json_rows
from niels_gpt.data.readers.open_files import open_file, open_text
from niels_gpt.errors import DataError, first_line

BATCH = 256  # rows held in memory
Placed = tuple[str, Any]  # a row with its place, or the ValueError that says why it is bad


def get_format(name: str) -> str:
    """Return the ending of a file's name, that of compression left out."""
    return Path(name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def read_rows(path: Path) -> Iterator[Placed]:
    """Yield the rows of a file, of JSON if its name says nothing else. DataError with file and row if damaged."""
    ending = get_format(path.name)
    if ending not in TABLES:
        yield from read_json_rows(path)
        return
    with (open_text if ending == ".csv" else open_file)(path) as file:
        number = 0
        try:
            for number, row in enumerate(TABLES[ending](file), 1):
                yield f"{path}: row {number}", row
        except (ValueError, OSError, LookupError, TypeError, ArithmeticError, RuntimeError, csv.Error) as error:
            place = f"{path}: cannot be read after row {number}"  # pyarrow raises all of these
            raise DataError(f"{place} ({first_line(error)})", "get the file again, or take it out") from error


def _read_parquet(file: io.BufferedReader) -> Iterator[Any]:
    from pyarrow import parquet

    # Without pre_buffer, and with a buffer, a row group is decoded as it is read, not at once.
    with parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as content:
        for batch in content.iter_batches(BATCH):
            yield from batch.to_pylist()


def _read_arrow(file: io.BufferedReader) -> Iterator[Any]:
    import pyarrow as pa

    if file.peek().startswith(b"ARROW1"):
        content = pa.ipc.open_file(file)
        batches = map(content.get_batch, range(content.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        batch.validate(full=True)  # offsets of a hostile file may point outside its memory
        for start in range(0, batch.num_rows, BATCH):
            yield from batch.slice(start, BATCH).to_pylist()


def _read_csv(file: io.BufferedReader) -> Iterator[Any]:
    csv.field_size_limit(MAX_LINE)
    for row in csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True):
        uneven = None in row or None in row.values()
        yield ValueError("more or fewer cells than the header has") if uneven else row


TABLES = {".parquet": _read_parquet, ".arrow": _read_arrow, ".csv": _read_csv}
JSON = (".jsonl", ".ndjson", ".json")
FORMATS = (*TABLES, *JSON)
