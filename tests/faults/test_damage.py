"""F7 to F14: damage to checkpoints, token caches and tokenizers is found, named and worked around."""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, same

from faults.folders import TINY, opened, require_equal, synthetic
from faults.scale import scaled
from niels_gpt.data.cache.token_cache import build_tokenizer
from niels_gpt.errors import CheckpointError, DataError
from niels_gpt.generation.chat import load_session
from niels_gpt.tokenizer import train_bpe
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.paths import step_path
from train.run.resume import find_newest

RUN = (*TINY, "train.total_steps=6", "train.ckpt_every=2", "train.eval_every=6", "train.keep_last=9")
NAMED = r"warning: \S*step_0000006\.pt (is damaged|cannot be read|is not a checkpoint)[^\n]*; using step 4$"
PAGE = 4096
KINDS = ("flip", "directory", "truncate", "zero", "append", "swap")


def mutated(content: bytes, draw: random.Random, others: list[bytes]) -> tuple[str, bytes]:
    """Return the kind of damage, and the bytes after it; `others` are files that may have got this one's name."""
    kind = draw.choice(KINDS if others else KINDS[:-1])
    if kind in ("flip", "directory"):  # the directory of a zip file is at its end
        first = 0 if kind == "flip" else max(0, len(content) - PAGE)
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 8))):
            changed[draw.randrange(first, len(changed))] ^= 1 << draw.randrange(8)
        return kind, bytes(changed)
    if kind == "truncate":
        return kind, content[: draw.randrange(len(content))]
    if kind == "zero":
        start = draw.randrange(0, len(content), 512)
        length = min(draw.choice((512, PAGE)), len(content) - start)
        return kind, content[:start] + bytes(length) + content[start + length :]
    if kind == "append":
        return kind, content + draw.randbytes(draw.choice((1, 22, PAGE, 70_000)))
    return kind, draw.choice(others)


@pytest.fixture
def trained(run_folder: Run) -> Path:
    """Return the folder of a run with the steps 2, 4 and 6; best.pt and latest.pt are of step 6."""
    return run_folder(*RUN)


def test_a_damaged_step_is_named_and_the_one_before_is_used(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phase, draw, refused = trained / "pretrain", random.Random(0), 0
    content = {step: step_path(phase, step).read_bytes() for step in (2, 4, 6)}
    states = {step: read_checkpoint(step_path(phase, step)) for step in (4, 6)}
    for _ in range(count := scaled(40, 900)):
        for path in phase.iterdir():
            path.unlink()
        kind, damaged = mutated(content[6], draw, [content[2], b"", content[4]])
        for step, data in (content | {6: damaged}).items():
            step_path(phase, step).write_bytes(data)
        os.link(step_path(phase, 6), phase / "latest.pt")  # as a run leaves it
        caplog.clear()
        found = find_newest(phase)
        assert found and same(found.saved, states[found.saved["step"]]), kind
        if found.saved["step"] == 4:
            assert re.search(NAMED, caplog.text, re.M), kind
            refused += 1
        else:
            assert not caplog.text, kind
    assert refused > count / 2


def test_a_bit_that_makes_a_record_a_folder_is_seen(trained: Path) -> None:
    """Torch would read zeros from it, and Python's zipfile does not look."""
    path = step_path(trained / "pretrain", 6)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 38] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a record became a folder"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["best.pt", "latest.pt"])
def test_damaged_weights_are_refused_by_whoever_samples_or_exports_or_starts_from_them(
    trained: Path, name: str
) -> None:
    path, draw, refused = trained / "pretrain" / name, random.Random(1), 0
    content, state = path.read_bytes(), read_checkpoint(path)
    for _ in range(count := scaled(15, 250)):
        kind, damaged = mutated(content, draw, [b""])
        path.write_bytes(damaged)
        try:
            session = load_session(path)  # what niels_gpt sample and export read with
        except CheckpointError as error:
            assert str(path) in str(error) and "in its folder: " in error.hint, kind
            refused += 1
        else:
            assert same(session.model.state_dict(), dict(state["model_state"])), kind
            assert same(read_checkpoint(path), state), kind
    assert refused > count / 2


def test_with_all_checkpoints_damaged_nothing_starts_from_scratch(trained: Path, run_folder: Run) -> None:
    phase, draw = trained / "pretrain", random.Random(2)
    (phase.parent / "result.json").unlink()
    content = {path: path.read_bytes() for path in phase.glob("*.pt")}
    for _ in range(scaled(2, 30)):
        for path, whole in content.items():
            path.unlink()
            path.write_bytes(whole[: draw.randrange(20_000)])
        with pytest.raises(CheckpointError) as caught:
            run_folder(*RUN)
        assert caught.value.exit_code == 4
        assert all(path.name in str(caught.value) for path in content)


def test_a_run_goes_on_from_damage_and_ends_as_if_there_had_been_none(run_folder: Run, tmp_path: Path) -> None:
    straight, draw = run_folder(*RUN, name="straight"), random.Random(9)
    for n in range(scaled(3, 40)):
        run = tmp_path / f"run{n}"
        shutil.copytree(straight, run)
        (run / "result.json").unlink()
        (run / "pretrain" / "latest.pt").unlink()
        os.link(step_path(run / "pretrain", 6), run / "pretrain" / "latest.pt")
        path = run / "pretrain" / ("step_0000006.pt", "best.pt", "step_0000004.pt")[n % 3]
        path.write_bytes(mutated(path.read_bytes(), draw, [])[1])
        run_folder(*RUN, name=f"run{n}")
        require_equal(run, straight)
        assert same(*(read_checkpoint(folder / "pretrain" / "best.pt") for folder in (run, straight)))


def require_refused_or_equal(
    files: list[Path], read: Callable[[], Any], hint: str, others: list[bytes], draw: random.Random, count: int
) -> None:
    """Damage a file at a time: reading it is refused by its name with a hint, or gives what it gave before."""
    whole, refused = read(), 0
    content = {path: path.read_bytes() for path in files}
    for _ in range(count):
        path = draw.choice(files)
        swaps = others or [content[other] for other in files if other != path]
        kind, damaged = mutated(content[path], draw, swaps)
        path.write_bytes(damaged)
        try:
            assert same(read(), whole), (path, kind)
        except DataError as error:
            assert path.name in str(error) and hint in error.hint, kind
            refused += 1
        path.write_bytes(content[path])
    assert refused > count / 2


def test_a_damaged_token_cache_is_refused_or_equal(tmp_path: Path) -> None:
    cfg = synthetic(tmp_path)
    opened(cfg)
    files = [path for path in (tmp_path / "cache").glob("*/*") if path.stat().st_size]
    require_refused_or_equal(files, lambda: opened(cfg), "rebuilt", [], random.Random(4), scaled(40, 600))


def test_a_damaged_tokenizer_of_the_cache_is_refused_or_equal(tmp_path: Path) -> None:
    cfg = synthetic(tmp_path, tokenizer="bpe")

    def read() -> str:
        return build_tokenizer(cfg, "documents", 300).hash()

    read()
    files, others = list((tmp_path / "cache").glob("tokenizer-*.json")), [b"", b'{"type": "bytes"}']
    require_refused_or_equal(files, read, "retrained", others, random.Random(5), scaled(15, 200))


def test_a_cache_under_another_name_is_not_taken_for_its_own(tmp_path: Path) -> None:
    cfg, other = synthetic(tmp_path), synthetic(tmp_path, size=120)
    opened(cfg), opened(other)
    first, second = sorted((tmp_path / "cache").glob("documents-*"))
    shutil.rmtree(first)
    second.rename(first)
    with pytest.raises(DataError, match="meta.json belongs to documents-synthetic-"):
        opened(cfg), opened(other)


def test_a_tokenizer_of_the_same_size_but_another_one_is_refused(run_folder: Run) -> None:
    bpe = ("data.tokenizer=bpe", "model.V=300")
    run = run_folder(*RUN, *bpe)
    train_bpe([chr(n) * 9 for n in range(400)], 300).save(run / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"/pretrain/step_\d+\.pt was trained with a different tokenizer"):
        run_folder(*RUN, *bpe, "train.total_steps=8")
    with pytest.raises(CheckpointError, match="was trained with a different tokenizer"):
        load_session(run)


def test_another_model_is_refused_with_what_differs(trained: Path, run_folder: Run) -> None:
    """Even if its weights have the same shapes."""
    (trained / "result.json").unlink()
    for key, value in {"d_ff": 32, "H": 1, "T": 32, "rope_theta": 500.0}.items():
        with pytest.raises(CheckpointError, match=rf"\nmodel\.{key}=[\d.]+, not {value}$"):
            run_folder(*RUN, f"model.{key}={value}")


def test_an_older_checkpoint_goes_on_with_the_defaults_of_what_it_lacks(run_folder: Run, tmp_path: Path) -> None:
    straight = run_folder(*RUN, name="straight")
    run = shutil.copytree(straight, tmp_path / "run")
    for name in ("result.json", "pretrain/latest.pt", "pretrain/step_0000006.pt"):
        (run / name).unlink()
    newer = {"loss_scaling", "compile", "keep_last", "grad_clip", "tokenizer", "data", "loss_sum", "loss_steps"}
    for path in (run / "pretrain").glob("*.pt"):
        saved = read_checkpoint(path)
        saved["train_cfg"] = {key: value for key, value in saved["train_cfg"].items() if key not in newer}
        saved["model_cfg"] = {key: value for key, value in saved["model_cfg"].items() if key != "rope_theta"}
        torch.save(saved, path)
    run_folder(*RUN)
    require_equal(run, straight)
    assert load_session(run).model.cfg.rope_theta == 10000.0


def test_a_damaged_line_of_the_metrics_costs_that_line_alone(run_folder: Run) -> None:
    run = run_folder(*RUN, "train.log_every=1")
    path = run / "pretrain" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", b"[1]\n", *lines[2:], lines[0][:20]]))
    (run / "result.json").write_bytes(b'{"phases": [{"step": [[')
    run_folder(*RUN, "train.log_every=1")
    assert path.read_bytes().splitlines(keepends=True) == lines
