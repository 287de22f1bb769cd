"""Read rows from files of parquet, arrow, JSON and CSV, a few at a time."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from niels_gpt.data.readers.decompress import decompress
from niels_gpt.data.readers.json_rows import read_json_rows
from niels_gpt.errors import DataError, first_line

BATCH = 256  # rows held in memory
MAX_CELL = 16 << 20  # characters of a cell of CSV
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
SPLIT_WORDS = {
    "training": "train",
    **dict.fromkeys(("valid", "val", "dev"), "validation"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
    **{name: name for name in ("train", "validation", "test")},
}
METADATA = ("cache-", "dataset_info", "dataset_dict", "state.json", ".")  # of saved data sets, and hidden files
Placed = tuple[str, Any]  # a row with its place, or the ValueError that says why it is bad


def find_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split, sorted; DataError if there are none.

    A file belongs to the split that its name or a folder's says; if no file says one, all are for training.
    """
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in found if get_format(path.name) in READERS and not path.name.startswith(METADATA)]
    if not files:
        raise DataError(f"{folder}: has no file of {', '.join(READERS)}", "data.repo names a folder of such files")
    named = {path: _name_split(path.relative_to(folder)) for path in files}
    if not any(named.values()):
        named = dict.fromkeys(files, "train")
    wanted = SPLIT_WORDS.get(split, split)
    if chosen := [path for path, name in named.items() if name == wanted]:
        return chosen
    raise DataError(
        f"{folder}: has no split {split!r}, only {', '.join(sorted({*named.values()} - {''}))}",
        "set data.split to one of them",
    )


def _name_split(path: Path) -> str:
    """Return the split that a path names, as train-00000-of-00001.parquet and dev/a.csv do, or nothing."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        if (shard := SHARD.fullmatch(part)) and shard[1] != "data":
            return SPLIT_WORDS.get(shard[1], shard[1])
        words = [SPLIT_WORDS[word] for word in re.split("[^a-z]+", part.lower()) if word in SPLIT_WORDS]
        if words:
            return words[-1]
    return ""


def get_format(name: str) -> str:
    """Return the ending of a file's name, that of compression left out."""
    return Path(name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def read_rows(path: Path) -> Iterator[Placed]:
    """Yield the rows of a file. DataError that names the file and the row if it is damaged."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, placed in enumerate(READERS[get_format(path.name)](path, file), 1):  # noqa: B007
                yield placed
    except (ValueError, OSError, LookupError, TypeError, ArithmeticError, RuntimeError, csv.Error) as error:
        place = f"{path}: cannot be read after row {number}"  # pyarrow raises all of these
        raise DataError(f"{place} ({first_line(error)})", "get the file again, or take it out") from error


def _read_parquet(path: Path, file: io.BufferedReader) -> Iterator[Placed]:
    from pyarrow import parquet

    # Without pre_buffer, and with a buffer, a row group is decoded as it is read, not at once.
    with parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as content:
        yield from _number_rows(path, (row for batch in content.iter_batches(BATCH) for row in batch.to_pylist()))


def _read_arrow(path: Path, file: io.BufferedReader) -> Iterator[Placed]:
    import pyarrow as pa

    if file.peek().startswith(b"ARROW1"):
        content = pa.ipc.open_file(file)
        batches = map(content.get_batch, range(content.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))

    def read() -> Iterator[Any]:
        for batch in batches:
            batch.validate(full=True)  # offsets of a hostile file may point outside its memory
            for start in range(0, batch.num_rows, BATCH):
                yield from batch.slice(start, BATCH).to_pylist()

    yield from _number_rows(path, read())


def _read_json(path: Path, file: io.BufferedReader) -> Iterator[Placed]:
    with decompress(path, file) as content:
        yield from read_json_rows(path, content)


def _read_csv(path: Path, file: io.BufferedReader) -> Iterator[Placed]:
    csv.field_size_limit(MAX_CELL)
    with decompress(path, file) as content:
        text = io.TextIOWrapper(content, "utf-8-sig", newline="")
        for place, row in _number_rows(path, csv.DictReader(text, strict=True)):
            uneven = None in row or None in row.values()
            yield place, ValueError("more or fewer cells than the header has") if uneven else row


def _number_rows(path: Path, rows: Iterable[Any]) -> Iterator[Placed]:
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))


READERS: dict[str, Callable[[Path, io.BufferedReader], Iterator[Placed]]] = {
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _read_json),
    ".csv": _read_csv,
}
