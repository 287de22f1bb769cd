"""Choose which records of a source validate, by their content: paths and the order of files make no difference."""

import hashlib
import os
import re
from array import array
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Literal, NamedTuple

import numpy as np

from niels_gpt.config import SourceCfg
from niels_gpt.data.cache.progress import show_progress
from niels_gpt.data.readers.local_files import find_files
from niels_gpt.data.readers.records import Dialogue, Document
from niels_gpt.data.sources import Want, encode_content, list_texts, read_records
from niels_gpt.errors import DataError
from niels_gpt.seeds import derive_seed

SPLIT_VERSION = 2  # of the rules below: a run resumes only under those that it began with
MAX_GROUP = 0.01  # of the records; a larger group trains while there are smaller ones to validate on
MIN_CUT = 128  # bytes; a shorter text is not cut
TEXT_ENDS = (r"\n[ \t\r]{0,8}\n", r"\n", r"[.!?]\s", r"\s")  # where a text is cut, the best first
Split = Literal["train", "val"]
Record = Document | Dialogue


class SplitPlan(NamedTuple):
    """The validation split of a source, and what was counted on the way.

    The groups in `whole` validate. So does `cut_share` of each text of the group `cut`, in one place. `records`
    counts documents or dialogues, `size` their bytes. `val_fraction` is what was asked for.
    """

    whole: frozenset[int]
    cut: int | None
    cut_share: float
    records: int
    size: int
    content_sha256: str
    val_fraction: float


def plan_split(source: SourceCfg, want: Want, val_fraction: float) -> SplitPlan:
    """Choose the records that validate. The source is read once; 16 bytes of each record are held in memory.

    DataError if there is too little for two splits, or if a file is in both `files` and `val_files`.
    """
    groups, sizes, content = array("q"), array("q"), []
    records, named, held_out = 0, False, source.held_out()
    if held_out and source.val_files:
        _require_disjoint(source, held_out)
    with show_progress(f"reading {source.label}") as advance:
        for part in filter(None, (source, held_out)):
            sha256, total = hashlib.sha256(), 0
            for record in read_records(part, want):
                encoded = encode_content(record)
                sha256.update(encoded)
                if isinstance(record, Dialogue) or record.ends:
                    total += int.from_bytes(sha256.digest())  # the sum is the same in any order
                    sha256, records = hashlib.sha256(), records + 1
                groups.append(_hash_group(record))
                sizes.append(len(encoded))
                advance(len(encoded))
                named = bool(record.name)
            content.append(total)
    chosen = (frozenset[int](), None, 0.0) if held_out else _choose_groups(groups, sizes, val_fraction, named)
    if not chosen:
        why = "the text is too short, or all the same"
        if want == "dialogues":
            why = "there is only one" if records == 1 else "all have the same first question"
        by = "another split with data.val_split" if source.kind == "hf" else "other files with data.val_files"
        hint = f"add more data, or validate on {by}"
        raise DataError(f"{source.label}: its {want} cannot be split for validation, since {why}", hint)
    content_sha256 = hashlib.sha256(repr(content).encode()).hexdigest()
    return SplitPlan(*chosen, records, sum(sizes), content_sha256, val_fraction)


def _choose_groups(
    hashes: "array[int]", bytes_each: "array[int]", val_fraction: float, named: bool
) -> tuple[frozenset[int], int | None, float] | None:
    """Return the fields `whole`, `cut` and `cut_share` of a plan, or None if one split would be empty.

    Groups validate in the order of their hashes until `val_fraction` of the text is reached, those above MAX_GROUP
    last. A text that is too long for the rest is cut; dialogues and `named` texts are passed over.
    """
    if not hashes:
        return None
    order = np.argsort(np.frombuffer(hashes, np.int64), kind="stable")
    ordered = np.frombuffer(hashes, np.int64)[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))  # of the groups
    size = np.add.reduceat(np.frombuffer(bytes_each, np.int64)[order], starts)
    del order  # large, for millions of records
    group, counts = ordered[starts], np.diff(starts, append=len(hashes))
    del ordered, starts
    excess = np.where(counts > max(1, MAX_GROUP * len(hashes)), counts, 0)
    whole: set[int] = set()
    left = target = val_fraction * float(size.sum())
    for n in excess.argsort(kind="stable"):
        own = int(size[n])
        if own <= 1.2 * left:
            whole.add(int(group[n]))
            left -= own
            if left < target / 100:
                break
        elif not named and left > target / 10 and own >= MIN_CUT * int(counts[n]):
            return frozenset(whole), int(group[n]), left / own
    if not whole and len(group) > 1:  # each is too long: the shortest validates
        whole = {int(group[np.lexsort((size, excess))[0]])}
    return (frozenset(whole), None, 0.0) if whole else None


def _hash_group(record: Record) -> int:
    return derive_seed("split", record.name or "\0".join(list_texts(record)))


def _require_disjoint(source: SourceCfg, held_out: SourceCfg) -> None:
    """Raise DataError if a file is in both `files` and `val_files`."""
    real = {os.path.realpath(path) for path in find_files(source)}
    for path in find_files(held_out):
        if os.path.realpath(path) in real:
            hint = "leave it out of one of them; a glob in files must not match it"
            raise DataError(f"{path} is in both files and val_files", hint)


def read_split(source: SourceCfg, want: Want, plan: SplitPlan) -> Iterator[tuple[Split, Record]]:
    """Yield the records with their splits. A document also `ends` where its other part is in the other split."""
    held_out = source.held_out()
    parts: Iterator[tuple[Split, Record] | tuple[None, None]] = chain(
        (part for record in read_records(source, want) for part in _divide(record, plan)),
        (("val", record) for record in (read_records(held_out, want) if held_out else ())),
        [(None, None)],
    )
    for (split, record), (following, _) in pairwise(parts):
        if split and record:
            if isinstance(record, Document) and split != following:
                record = record._replace(ends=True)
            yield split, record


def _divide(record: Record, plan: SplitPlan) -> Iterator[tuple[Split, Record]]:
    group = _hash_group(record)
    if group != plan.cut or isinstance(record, Dialogue):
        yield "val" if group in plan.whole else "train", record
        return
    before, middle, after = _cut_middle(record.text, plan.cut_share)
    if before:
        yield "train", record._replace(text=before, ends=False)
    yield "val", record._replace(text=middle, ends=record.ends and not after)
    if after:
        yield "train", record._replace(text=after)


def _cut_middle(text: str, share: float) -> tuple[str, str, str]:
    """Cut out about `share` of a text in one place, which its content decides; the rest is never empty.

    Its ends are those of paragraphs, lines, sentences or words, the first of these that is near enough.
    """
    wanted = share * len(text)
    least = max(1, int(wanted / 4))
    near = "|".join(f".{{{least},{3 * least}}}?{end}" for end in TEXT_ENDS)
    ends = [0, *(match.end() for match in re.finditer(f"{near}|.{{1,{3 * least}}}", text, re.DOTALL))]
    starts = [start for start in ends[:-1] if len(text) - start >= wanted]
    start = min(starts, key=lambda start: derive_seed("cut", text[start : start + least]))
    stops = [end for end in ends if end > start and (start or end < len(text))]
    stop = min(stops, key=lambda end: abs(end - start - wanted))
    return text[:start], text[start:stop], text[stop:]
