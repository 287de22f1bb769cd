"""F23 to F25: a damaged file is read, or refused by its name and the place in it."""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import same

from faults.door import never_forever
from faults.folders import opened, synthetic
from faults.hostile_bytes import BYTES, JSON, Damage, other_json, other_value
from faults.scale import scaled
from niels_gpt.config import SourceCfg
from niels_gpt.data.cache.token_files import DTYPES, write_meta
from niels_gpt.data.readers import local_files
from niels_gpt.errors import ConfigError, DataError, NielsError
from niels_gpt.tokenizer import load_tokenizer, train_bpe
from train.config.legacy import format_experiment, plan_from_json

TALK = [{"role": "user", "content": "hi\n{é}"}, {"role": "assistant", "content": "hello: 😀"}]
ROWS = [{"messages": TALK}, {"prompt": "a", "completion": "b"}, {"text": "some text"}]
OLD = {
    "model": {"V": 256, "T": 8, "C": 16, "L": 1, "H": 2, "d_ff": 32, "dropout": 0.1},
    "train": {"B": 2, "total_steps": 10, "base_lr": 0.001, "betas": [0.9, 0.95], "eval_steps": 3},
    "sources": {"wiki": 0.8, "notes": 0.2},
    "val_source": "wiki",
}
PLACE = re.compile(r":\d+|at byte \d+|line \d+|lines? \d|row \d|JSON \(")  # a number or nesting has no place


def _text(path: Path) -> None:
    for cut in ("file", "blank_lines"):
        list(local_files.read_documents(SourceCfg(kind="text", files=(str(path),), documents=cut)))


def _jsonl(path: Path) -> None:
    cfg = SourceCfg(kind="jsonl", files=(str(path),))
    list(local_files.read_documents(cfg)), list(local_files.read_dialogues(cfg))
    local_files.fingerprint(cfg)


class Kind(NamedTuple):
    """A kind of file: its reader, the error of a bad one, damage, and refusals that need no place."""

    read: Callable[[Path], Any]
    error: type[NielsError]
    damage: dict[str, Damage]
    whole: str


def _other_row(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = other_json(lines[at], draw)
    return b"\n".join(lines)


KINDS = {
    "text": Kind(_text, DataError, BYTES, "no text|, not text in UTF-8"),
    "JSON lines": Kind(_jsonl, DataError, BYTES | JSON | {"row": _other_row}, "no rows|, not text in UTF-8"),
    "older config": Kind(
        lambda path: (plan_from_json(path), format_experiment(path)),
        ConfigError,
        BYTES | JSON | {"other": other_json, "and other": other_json},
        r"^[\w.]+(=|: | is)|unknown|has both|given twice|not a (JSON object|whole number)|must (both )?be",
    ),
    "tokenizer": Kind(load_tokenizer, DataError, BYTES | JSON | {"other": other_json}, "of niels_gpt|not a token"),
}


def _good(kind: str, path: Path) -> bytes:
    if kind == "tokenizer":
        train_bpe(["the cat sat on the mat " * 9], 268).save(path)
        return path.read_bytes()
    text = "".join(f"line {i} é\n" + "\n" * (i % 3 == 0) for i in range(60))
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS * 3) + "\n"
    return {"text": text, "JSON lines": lines, "older config": json.dumps(OLD, indent=1)}[kind].encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_by_its_name_and_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-files")
    it, path, ended = KINDS[kind], tmp_path / "hostile.json", Counter[str]()
    good = _good(kind, path)
    for number in range(scaled(60, 1000)):
        draw = random.Random(number)
        names = draw.choices(sorted(it.damage), k=draw.choice([1, 1, 1, 2]))
        content = good
        for name in names:
            try:
                content = it.damage[name](content, draw)
            except (ValueError, RecursionError):  # the damage before has left no JSON, or no text, for this one
                continue
        path.write_bytes(content)
        try:
            with never_forever():
                it.read(path)
            ended["read"] += 1
        except it.error as error:
            ended["refused"] += 1
            require_named(error, it, f"{number} {names}")
    assert min(ended["read"], ended["refused"]) > 0
    assert os.listdir(tmp_path) == [path.name]


def require_named(error: NielsError, it: Kind, about: str) -> None:
    """A refusal says which file, where in it, in lines that a terminal can show."""
    said = str(error)
    whole = re.search(it.whole, said)
    place = PLACE.search(said.replace(said.split(":")[0], "", 1))
    assert "hostile.json" in said or (issubclass(it.error, ConfigError) and whole), (about, said)
    assert place or whole, (about, said)
    assert all(line.isprintable() for line in said.splitlines()) and len(said) < 5000, (about, said)
    assert "canary-of-files" not in said


def _retype(meta: Any, draw: random.Random) -> None:
    """Let meta.json take a file for numbers of another size, with a count to match."""
    said = draw.choice(list(draw.choice(list(meta["splits"].values())).values()))
    size, said["dtype"] = said["count"] * DTYPES[said["dtype"]].itemsize, draw.choice(list(DTYPES))
    said["count"] = size // DTYPES[said["dtype"]].itemsize


def test_a_damaged_meta_is_refused_by_its_name_or_changes_no_token(tmp_path: Path) -> None:
    cfg, ended, damage = synthetic(tmp_path), Counter[str](), BYTES | JSON | {"other": other_json}
    whole = opened(cfg)
    metas = {path: path.read_bytes() for path in sorted((tmp_path / "cache").glob("*/meta.json"))}
    for number in range(scaled(100, 2000)):
        draw = random.Random(number)
        path = draw.choice(list(metas))
        if number % 3:
            meta = json.loads(path.read_bytes())
            del meta["sha256"]
            (other_value, _retype)[number % 3 - 1](meta, draw)
            write_meta(path.parent, meta)  # with a hash to match
        else:
            path.write_bytes(damage[draw.choice(list(damage))](metas[path], draw))
        try:
            with never_forever():
                now = opened(cfg)
        except DataError as error:
            said = str(error)
            ended["refused"] += 1
            assert f"{path.parent}/" in said and error.hint == f"delete {path.parent}; it will be rebuilt", (
                number,
                said,
            )
            assert all(line.isprintable() for line in said.splitlines()) and len(said) < 500, (number, said)
        else:
            ended["harmless"] += 1
            assert same(now, whole) and repr(now) == repr(whole), number  # which tells the dtypes, too
        path.write_bytes(metas[path])
    assert min(ended["refused"], ended["harmless"]) > 0
