"""Read documents and dialogues from files of text and of rows, plain or compressed."""

import glob
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from niels_gpt.config import SourceCfg
from niels_gpt.data.cache.hash_index import hash_file
from niels_gpt.data.readers import hub
from niels_gpt.data.readers.json_rows import MAX_LINE
from niels_gpt.data.readers.open_files import open_file, open_text, refuse_unreadable
from niels_gpt.data.readers.records import SECTION, Dialogue, Document, cut_sections, join_lines
from niels_gpt.data.readers.row_shapes import RowParser, log_once
from niels_gpt.data.readers.tables import FORMATS, JSON, get_format, read_rows
from niels_gpt.data.readers.trees import join_trees
from niels_gpt.errors import DataError

FIRST_ROWS = 1000  # of each file of rows, read to find out which kinds of row it holds
ENDINGS = {  # of the files that a folder stands for, perhaps with .gz or .zst after it
    "text": (".txt", ".text", ".md", ".markdown", ".rst", ".org"),
    "jsonl": JSON,
    "hf": FORMATS,
}
ABOUT_DATA = ("cache-", "dataset_info.", "dataset_dict.", "state.")  # begin such names in saved data sets
HELD_OUT = re.compile("(?<![a-z])(validation|valid|val|dev|test|eval)(?![a-z])")
BLOCK = 1 << 18  # characters that are searched for separators at once
MANY_MARKS = 20  # in the texts of a source: more than an article about such marks has

_NOT_TEXT = re.compile("[\0\udc80-\udcff]")  # surrogateescape decodes bytes that are not UTF-8 to these
_MARKS = re.compile(r"<\|endoftext\|>|<\|end_of_text\|>|</s>")
Row = Document | Dialogue


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the texts of a source. DataError naming file and line or row if there are none, or one is bad."""
    if cfg.kind == "text":
        yield from _read_texts(cfg)
    else:
        yield from (row for row in _read_rows(cfg) if isinstance(row, Document))


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield the dialogues of rows. DataError as for `read_documents`."""
    yield from (row for row in _read_rows(cfg) if isinstance(row, Dialogue))


def has_rows(cfg: SourceCfg, kind: type[Row]) -> bool:
    """Return whether any file of rows has such a row among its FIRST_ROWS."""
    return any(isinstance(row, kind) for row in _read_rows(cfg, FIRST_ROWS))


def fingerprint(cfg: SourceCfg, sha256: Callable[[Path], str] = hash_file) -> str:
    """Return a hash that changes whenever the records would. `sha256` hashes a file, perhaps from an index."""
    hashes = []
    for path in find_files(cfg):
        with open_file(path):
            hashes.append(sha256(path))
    if not cfg.max_tokens:  # else the first files are read
        hashes.sort()
    parts = [cfg.kind, cfg.documents, cfg.separator, cfg.on_bad_line, cfg.column, *hashes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# --- which files


def find_files(cfg: SourceCfg) -> list[Path]:
    """Return the files of a source, sorted, each real file once; those of the hub are fetched at first."""
    if cfg.kind == "hf" and not hub.is_local(cfg):
        return hub.fetch_files(cfg)
    setting, patterns = ("repo", (cfg.repo,)) if cfg.kind == "hf" else ("files", cfg.files)
    endings, found = ENDINGS[cfg.kind], set[str]()
    for pattern in patterns:
        matches = _match(os.path.expanduser(pattern), endings)
        if not matches:
            hint = f"paths are relative to {Path.cwd()}; for data=text, a glob takes any files: 'FOLDER/**/*.py'"
            if os.path.isdir(folder := os.path.expanduser(pattern)):
                hint = f"use data=hf data.repo={pattern}" if _match(folder, FORMATS) else hint
                raise DataError(f"{pattern} has no {', '.join(endings)} files", hint)
            raise DataError(f"data.{setting}: no file matches {pattern!r}", hint)
        found |= matches
    real = {os.path.realpath(path): path for path in sorted(found, reverse=True)}
    files = sorted(Path(path) for path in real.values())
    return _choose_split(files, cfg) if cfg.kind == "hf" else files


def _match(path: str, endings: tuple[str, ...]) -> set[str]:
    """Return a file, those that a glob matches, or those below a folder with such endings and no hidden name."""
    if not os.path.isdir(path):  # a name with brackets in it is a name first
        names = [path] if os.path.lexists(path) else glob.glob(path, recursive=True)
        return {name for name in names if os.path.lexists(name) and not os.path.isdir(name)}
    found = set()
    for parent, folders, names in os.walk(path, onerror=refuse_unreadable):
        folders[:] = (name for name in folders if name[0] != ".")
        found |= {os.path.join(parent, name) for name in names if name[0] != "." and get_format(name) in endings}
    return found


def _choose_split(files: list[Path], cfg: SourceCfg) -> list[Path]:
    """Return the files whose paths name the split; for training, all if none does. HELD_OUT ones never train."""
    training, top = cfg.split == "train", Path(cfg.repo).expanduser()
    split = re.compile(f"(?<![a-z]){re.escape(cfg.split.lower())}(?![a-z_])")
    files = [path for path in files if not path.name.startswith(ABOUT_DATA)]
    names = {path: path.relative_to(top).as_posix().lower() for path in files}
    held_out = {path: found[1] for path in files if training and (found := HELD_OUT.search(names[path]))}
    for name in set() if cfg.val_split else {*held_out.values()} - {"test", "eval"}:
        log_once(logging.INFO, f"data: {cfg.label}: not read: {name} (data.val_split={name} validates on it)")
    allowed = [path for path in files if path not in held_out]
    chosen = [path for path in allowed if split.search(names[path])]
    if not chosen and not (training and allowed):
        reason = f"{cfg.repo} has no split {cfg.split!r}, only {', '.join(names.values()):.300}"
        raise DataError(reason, "set data.split to a word in the names of files or folders")
    return chosen or allowed


# --- plain text


def _read_texts(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the documents of all files; log how many, and warn of marks between documents that do not cut."""
    paths, marks, count = find_files(cfg), Counter[str](), 0
    for path in paths:
        for document in _cut_documents(_read_lines(path, marks), cfg, marks):
            count += document.ends
            yield document
    if not count:
        raise DataError(f"{', '.join(cfg.files):.300}: no text", "name files with text in data.files")
    log_once(logging.INFO, f"data: {cfg.label}: files: {len(paths):,}, documents: {count:,}")
    if cfg.separator and not marks[cfg.separator]:
        log_once(logging.WARNING, f"data: {cfg.label}: data.separator={cfg.separator!r} is nowhere in the text")
    for mark, often in marks.most_common(1):
        if often >= MANY_MARKS and not cfg.separator:
            advice = f"""learned as text; to split documents there, add 'data.separator="{mark}"'"""
            log_once(logging.WARNING, f"data: {cfg.label}: {mark} is in the text {often} times and is {advice}")


def _cut_documents(lines: Iterable[str], cfg: SourceCfg, marks: Counter[str]) -> Iterator[Document]:
    """Yield a file, in sections if it is long, or its paragraphs, or the texts between separators."""
    if not cfg.separator and cfg.documents == "file":
        return cut_sections(lines)
    pieces = _cut_at(cfg.separator, lines, marks) if cfg.separator else join_lines(lines, 0, MAX_LINE)
    return (Document("", piece.rstrip().lstrip("\n")) for piece in pieces if piece.strip())


def _cut_at(separator: str, lines: Iterable[str], marks: Counter[str]) -> Iterator[str]:
    """Yield the texts between separators, and count these; a text of MAX_LINE characters is cut there."""
    rest = ""
    for block in join_lines(lines, BLOCK, BLOCK):  # for each, the text so far is searched again
        *ended, rest = (rest + block).split(separator)
        marks[separator] += len(ended)
        yield from ended
        if len(rest) >= MAX_LINE:
            at = len(rest) - len(separator) + 1  # what is after that may begin a separator
            yield rest[:at]
            rest = rest[at:]
    yield rest


def _read_lines(path: Path, marks: Counter[str]) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, line ends as LF, a long line in parts of SECTION; count marks."""
    with open_text(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
        number = 1
        while line := text.readline(SECTION):
            if _NOT_TEXT.search(line):
                message = f"{path}:{number}: " + "NUL bytes, " * ("\0" in line) + "not text in UTF-8"
                raise DataError(message, "save the file as UTF-8, or leave it out of data.files")
            if "<" in line:
                marks.update(_MARKS.findall(line))
            number += line.endswith("\n")
            yield line


# --- rows


def _read_rows(cfg: SourceCfg, limit: int | None = None) -> Iterator[Row]:
    """Yield the records of all files of rows, of at most `limit` rows of each; log counts, unless `limit`."""
    paths, column = find_files(cfg), cfg.column if cfg.kind == "hf" else None
    parser = RowParser(cfg.label, cfg.on_bad_line == "skip", column)
    rows = (placed for path in paths for placed in islice(read_rows(path), limit))
    for place, row in rows if column else join_trees(rows):
        if record := parser.parse(place, row):
            yield record
    where = f"{cfg.repo}, split {cfg.split}" if cfg.kind == "hf" else f"{', '.join(cfg.files):.300}"
    parser.finish(where, 0 if limit else len(paths))
