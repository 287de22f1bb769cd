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
from faults.mutations import mutated
from faults.scale import scaled
from niels_gpt.data.token_cache import build_tokenizer
from niels_gpt.errors import CheckpointError, DataError, NielsError
from niels_gpt.generation.chat import load_session
from niels_gpt.tokenizer import load_tokenizer, train_bpe
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.paths import step_path
from train.run.resume import find_newest

RUN = (*TINY, "train.total_steps=6", "train.ckpt_every=2", "train.eval_every=6", "train.keep_last=9")
NAMED = r"warning: \S*step_0000006\.pt (is damaged|cannot be read|is not a checkpoint)[^\n]*; using step 4$"


@pytest.fixture
def trained(run_folder: Run) -> Path:
    """Return the folder of a run with the steps 2, 4 and 6; best.pt and latest.pt are of step 6."""
    return run_folder(*RUN)


def restored(phase: Path, content: dict[str, bytes]) -> None:
    """Put back what was there, each name a file of its own but latest.pt, as a run leaves it."""
    for path in phase.iterdir():
        path.unlink()
    for name, data in content.items():
        (phase / name).write_bytes(data)
    (phase / "latest.pt").unlink()
    os.link(step_path(phase, 6), phase / "latest.pt")


def test_a_damaged_step_is_named_and_the_one_before_is_used(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phase, draw, refused = trained / "pretrain", random.Random(0), 0
    content = {path.name: path.read_bytes() for path in phase.glob("*.pt")}
    states = {step: read_checkpoint(step_path(phase, step)) for step in (4, 6)}
    others = [content["step_0000002.pt"], b"", content["step_0000004.pt"]]
    for _ in range(count := scaled(40, 900)):
        restored(phase, content)
        kind, damaged = mutated(content["step_0000006.pt"], draw, others)
        step_path(phase, 6).write_bytes(damaged)
        (phase / "best.pt").unlink()
        caplog.clear()
        found = find_newest(phase)
        assert found and same(found.saved, states[found.saved["step"]]), kind
        if found.saved["step"] == 4:
            assert re.search(NAMED, caplog.text, re.M), kind
            refused += 1
        else:
            assert not caplog.text, kind
    assert refused > count / 2


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
            session = load_session(path)  # what scripts/sample.py and scripts/export.py read with
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
    content = {path.name: path.read_bytes() for path in phase.glob("*.pt")}
    for _ in range(scaled(2, 30)):
        restored(phase, content)
        for path in phase.glob("*.pt"):
            path.write_bytes(path.read_bytes()[: draw.randrange(20_000)])
        with pytest.raises(CheckpointError) as caught:
            run_folder(*RUN)
        assert caught.value.exit_code == 4
        for name in ("step_0000002.pt", "step_0000004.pt", "step_0000006.pt", "best.pt"):
            assert name in str(caught.value)


def test_a_run_goes_on_from_damage_and_ends_as_if_there_had_been_none(run_folder: Run, tmp_path: Path) -> None:
    straight, draw = run_folder(*RUN, name="straight"), random.Random(3)
    for n in range(scaled(3, 40)):
        run = tmp_path / f"run{n}"
        shutil.copytree(straight, run)
        (run / "result.json").unlink()
        (run / "pretrain" / "latest.pt").unlink()
        os.link(step_path(run / "pretrain", 6), run / "pretrain" / "latest.pt")
        name = draw.choice(("step_0000006.pt", "best.pt", "step_0000004.pt"))
        path = run / "pretrain" / name
        path.write_bytes(mutated(path.read_bytes(), draw, [])[1])
        run_folder(*RUN, name=f"run{n}")
        require_equal(run, straight)
        mended, whole = (read_checkpoint(folder / "pretrain" / "best.pt") for folder in (run, straight))
        assert same(mended, whole)


def test_a_damaged_best_is_stood_in_for_and_then_made_anew(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*RUN, "train.eval_every=3"]
    run = run_folder(*overrides)
    best = run / "pretrain" / "best.pt"
    best.write_bytes(best.read_bytes()[:-100])
    step_path(run / "pretrain", 6).unlink()
    (run / "pretrain" / "latest.pt").unlink()
    run_folder(*overrides, "train.total_steps=7")
    assert "best.pt cannot be read (File is not a zip file); replaced by step 4 until the next eval" in caplog.text
    assert read_checkpoint(best)["best_val_loss"] is not None


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
    hint = "delete the folder; it will be rebuilt"
    require_refused_or_equal(files, lambda: opened(cfg), hint, [], random.Random(4), scaled(40, 600))


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
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    for swapped in (cfg, other):
        with pytest.raises(DataError, match="meta.json belongs to documents-synthetic-"):
            opened(swapped)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-7], r"train\.ids: (\d+) bytes, but \d+ x uint16 are \d+ bytes"),
        (lambda content: content[:84] + b"\x60\xea" + content[86:], r"train\.ids is damaged: its sha256 differs"),
    ],
    ids=["truncated", "id"],
)
def test_a_run_refuses_token_files_of_another_size_or_with_ids_that_are_none(
    run_folder: Run, tmp_path: Path, change: Any, said: str
) -> None:
    own = (*RUN, f"data.cache_dir={tmp_path / 'own'}")
    run_folder(*own, "train.total_steps=1", name="first")
    ids = next((tmp_path / "own").glob("*/train.ids"))
    ids.write_bytes(change(ids.read_bytes()))
    with pytest.raises(DataError, match=said) as caught:
        run_folder(*own, name="second")
    assert caught.value.exit_code == 3


def test_a_tokenizer_of_the_same_size_but_another_one_is_refused(run_folder: Run) -> None:
    bpe = ("data.tokenizer=bpe", "model.V=300")
    run = run_folder(*RUN, *bpe)
    texts = ["another text, all in all", *(chr(n) * 9 for n in range(400))]
    train_bpe(texts, 300).save(run / "tokenizer.json")
    assert load_tokenizer(run / "tokenizer.json").V == 300
    with pytest.raises(CheckpointError, match=r"/pretrain/step_\d+\.pt was trained with a different tokenizer"):
        run_folder(*RUN, *bpe, "train.total_steps=8")
    with pytest.raises(CheckpointError, match="was trained with a different tokenizer"):
        load_session(run)


def test_another_model_is_refused_with_what_differs(trained: Path, run_folder: Run) -> None:
    (trained / "result.json").unlink()
    for key, value in {"C": 32, "L": 2, "H": 1, "T": 32, "rope_theta": 500.0, "d_ff": 32}.items():
        with pytest.raises(CheckpointError) as caught:
            run_folder(*RUN, f"model.{key}={value}")
        (line,) = str(caught.value).splitlines()[1:]
        assert line.startswith(f"model.{key}=") and line.endswith(f", not {value}")
        assert caught.value.exit_code == 4


def test_an_older_checkpoint_goes_on_with_the_defaults_of_what_it_lacks(run_folder: Run) -> None:
    straight = run_folder(*RUN, name="straight")
    run = run_folder(*RUN, "train.total_steps=4", "train.warmup_steps=0")
    shutil.rmtree(run)
    shutil.copytree(straight, run)
    (run / "result.json").unlink()
    for path in (run / "pretrain").glob("*.pt"):
        saved = read_checkpoint(path)
        newer = (
            "loss_scaling",
            "compile",
            "keep_last",
            "grad_clip",
            "tokenizer",
            "data",
            "loss_sum",
            "loss_steps",
        )
        saved["train_cfg"] = {key: value for key, value in saved["train_cfg"].items() if key not in newer}
        saved["model_cfg"] = {key: value for key, value in saved["model_cfg"].items() if key != "rope_theta"}
        path.unlink()
        torch.save(saved, path)
    step_path(run / "pretrain", 6).unlink()
    (run / "pretrain" / "latest.pt").unlink()
    run_folder(*RUN)
    require_equal(run, straight)
    assert load_session(run).model.cfg.rope_theta == 10000.0


def test_a_checkpoint_of_other_content_is_refused_by_the_name_of_its_part(trained: Path, run_folder: Run) -> None:
    (trained / "result.json").unlink()
    whole = read_checkpoint(trained / "pretrain" / "step_0000006.pt")
    wrong: dict[str, Any] = {
        "model_state": dict(list(whole["model_state"].items())[1:]),
        "optimizer_state": {"state": {}, "param_groups": []},
        "step": "6",
        "train_cfg": [],
        "model_cfg": {},
    }
    for key, value in wrong.items():
        for path in (trained / "pretrain").glob("*.pt*"):
            path.unlink()
        torch.save(whole | {key: value}, step_path(trained / "pretrain", 6))
        with pytest.raises(NielsError, match=key) as caught:
            run_folder(*RUN)
        assert caught.value.exit_code == 4


def test_a_damaged_line_of_the_metrics_costs_that_line_alone(run_folder: Run) -> None:
    run = run_folder(*RUN, "train.log_every=1")
    path = run / "pretrain" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", b"[1]\n", *lines[2:], lines[0][:20]]))
    (run / "result.json").write_bytes(b'{"phases": [{"step": [[')
    run_folder(*RUN, "train.log_every=1")
    assert path.read_bytes().splitlines(keepends=True) == lines
