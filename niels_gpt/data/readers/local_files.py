"""Read documents and dialogues from text files and JSON, plain or compressed."""

import glob
import hashlib
import io
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NoReturn

from niels_gpt.config import SourceCfg
from niels_gpt.data.hash_index import hash_file
from niels_gpt.data.readers.decompress import decompress
from niels_gpt.data.readers.json_rows import MAX_LINE, read_json_rows
from niels_gpt.data.readers.records import SECTION, Dialogue, Document, cut_sections, join_lines
from niels_gpt.data.readers.row_shapes import RowParser, log_once
from niels_gpt.errors import DataError

MAX_PARAGRAPH = 1 << 20  # characters; a file without blank lines is not held in memory
FIRST_ROWS = 1000  # of each file of rows, read to find out which kinds of row it holds
ENDINGS = {  # of the files that a folder stands for, perhaps with .gz or .zst after it
    "text": (".txt", ".text", ".md", ".markdown", ".rst", ".org"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
}
MANY_MARKS = 20  # in the texts of a source: more than an article about such marks has

_NOT_TEXT = re.compile("[\0\udc80-\udcff]")  # surrogateescape decodes bytes that are not UTF-8 to these
_MARKS = re.compile(r"<\|endoftext\|>|<\|end_of_text\|>|</s>")
Row = Document | Dialogue


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the texts of `cfg.files`, in the order of their paths.

    DataError naming file and line if a file cannot be read, has no text or is not of `cfg.kind`.
    """
    if cfg.kind == "text":
        yield from _read_texts(cfg)
    else:
        yield from (row for row in _read_rows(cfg) if isinstance(row, Document))


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield the dialogues of rows, in the order of their paths. DataError as for `read_documents`."""
    yield from (row for row in _read_rows(cfg) if isinstance(row, Dialogue))


def has_rows(cfg: SourceCfg, kind: type[Row]) -> bool:
    """Return whether any file of rows has such a row among its FIRST_ROWS."""
    return any(isinstance(row, kind) for row in _read_rows(cfg, FIRST_ROWS))


def fingerprint(cfg: SourceCfg, sha256: Callable[[Path], str] = hash_file) -> str:
    """Return a hash that changes whenever `read_documents` or `read_dialogues` would yield something else.

    `sha256` returns the hash of a file, perhaps from an index.
    """
    hashes = []
    for path in find_files(cfg):
        with _open_regular(path):
            hashes.append(sha256(path))
    settings = (cfg.documents, cfg.separator) if cfg.kind == "text" else (cfg.on_bad_line,)
    parts = [cfg.kind, *settings, *sorted(hashes)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def find_files(cfg: SourceCfg) -> list[Path]:
    """Return the files that paths, folders and globs name, sorted, each real file once."""
    found: set[str] = set()
    for pattern in cfg.files:
        full = os.path.expanduser(pattern)
        # A name with brackets in it is a name first. "notes/**" matches the folders within too: they are left out.
        globbed = (path for path in glob.glob(full, recursive=True) if not os.path.isdir(path))
        if os.path.isdir(full):
            matches = _list_folder(full, ENDINGS[cfg.kind])
        else:
            matches = {full} if os.path.lexists(full) else set(filter(os.path.lexists, globbed))
        if not matches:
            hint = f"paths are relative to {Path.cwd()}; ** matches nested folders"
            raise DataError(f"data.files: no file matches {pattern!r}", hint)
        found |= matches
    real = {os.path.realpath(path): path for path in sorted(found, reverse=True)}
    return sorted(Path(path) for path in real.values())


def _list_folder(folder: str, endings: tuple[str, ...]) -> set[str]:
    """Return the files in a folder and those within that have such endings; hidden ones are left out."""
    found = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = (name for name in folders if not name.startswith("."))
        plain = {name: name.lower().removesuffix(".gz").removesuffix(".zst") for name in names if name[0] != "."}
        found |= {os.path.join(parent, name) for name, end in plain.items() if end.endswith(endings)}
    if not found:
        hint = f"'{os.path.join(folder, '**')}' names all files within, '**/*.py' those of one ending"
        raise DataError(f"data.files: the folder {folder} has no {', '.join(endings)} files", hint)
    return found


@contextmanager
def _open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file; an OSError becomes a DataError that names the file."""
    try:
        # Checked before opening, because opening a FIFO would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: not a regular file", "name a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        error.filename = path
        _refuse_unreadable(error)


def _refuse_unreadable(error: OSError) -> NoReturn:
    reason = f"{error.filename}: cannot be read ({error.strerror or error})"
    raise DataError(reason, "check the path and its permissions") from error


@contextmanager
def _open_content(path: Path) -> Iterator[io.BufferedReader]:
    with _open_regular(path) as file, decompress(path, file) as content:
        yield content


def _count_files(paths: list[Path]) -> str:
    return "1 file" if len(paths) == 1 else f"{len(paths)} files"


def _name_files(paths: list[Path]) -> str:
    return f"{paths[0]}" if len(paths) == 1 else f"{_count_files(paths)}, the first of them {paths[0]}"


# --- plain text


def _read_texts(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the documents of all files; log how many, and warn of marks between documents that do not cut."""
    paths, marks, count = find_files(cfg), Counter[str](), 0
    for path in paths:
        for document in _read_text(path, cfg, marks):
            count += document.ends
            yield document
    if not count:
        raise DataError(f"{_name_files(paths)}: no text", "name files with text in data.files")
    log_once(logging.INFO, f"data: {cfg.label}: {_count_files(paths)}, documents: {count}")
    for mark, often in marks.most_common(1):
        if cfg.separator and not often:
            log_once(logging.WARNING, f"{cfg.label}: data.separator={mark!r} is nowhere in the text")
        elif not cfg.separator and often >= MANY_MARKS:
            advice = f"""'data.separator="{mark}"' cuts the documents there"""
            log_once(logging.WARNING, f"{cfg.label}: {mark} is in the text {often} times, as words; {advice}")


def _read_text(path: Path, cfg: SourceCfg, marks: Counter[str]) -> Iterator[Document]:
    """Yield a file, in sections if it is long, or its paragraphs, or the texts between separators; count marks."""
    lines = _read_lines(path)
    if cfg.separator:
        pieces = _cut_at(cfg.separator, lines, marks)
    elif cfg.documents == "blank_lines":
        pieces = join_lines(_count_marks(lines, marks), 0, MAX_PARAGRAPH)
    else:
        yield from cut_sections(_count_marks(lines, marks))
        return
    yield from (Document("", piece.rstrip().lstrip("\n")) for piece in filter(str.strip, pieces))


def _count_marks(lines: Iterable[str], marks: Counter[str]) -> Iterator[str]:
    for line in lines:
        if "<" in line:
            marks.update(_MARKS.findall(line))
        yield line


def _cut_at(separator: str, lines: Iterable[str], marks: Counter[str]) -> Iterator[str]:
    """Yield the texts between separators, and count these; a text of MAX_LINE characters is cut there."""
    piece: list[str] = []
    size, rest = 0, ""  # rest: the last characters, which may begin a separator
    for line in lines:
        *ended, rest = (rest + line).split(separator)
        marks[separator] += len(ended)
        for end in ended:
            yield "".join([*piece, end])
            piece, size = [], 0
        at = max(0, len(rest) - len(separator) + 1)
        piece.append(rest[:at])
        size, rest = size + at, rest[at:]
        if size >= MAX_LINE:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join([*piece, rest])


def _read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without BOM, line ends as LF, a long line in parts of SECTION."""
    with _open_content(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
        number = 1
        while line := text.readline(SECTION):
            if _NOT_TEXT.search(line):
                message = f"{path}:{number}: not text in UTF-8"
                raise DataError(message, "save the file as UTF-8, or leave it out of data.files")
            number += line.endswith("\n")
            yield line


# --- rows of JSON


def _read_rows(cfg: SourceCfg, limit: int | None = None) -> Iterator[Row]:
    """Yield the rows of all files, at most `limit` of each; log the counts at the end, unless `limit`."""
    parser = RowParser(cfg.label, cfg.on_bad_line == "skip")
    paths = find_files(cfg)
    for path in paths:
        yield from islice(_read_file_rows(path, parser), limit)
    parser.require_rows(_name_files(paths))
    if limit is None:
        parser.log(_count_files(paths))


def _read_file_rows(path: Path, parser: RowParser) -> Iterator[Row]:
    with _open_content(path) as file:
        for place, row in read_json_rows(path, file):
            if record := parser.parse(place, row):
                yield record
