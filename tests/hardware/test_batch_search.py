"""batch=auto finds, shows and remembers the fastest B that fits; a step keeps its number of sequences."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import ROOT, Plan, Run, same

from niels_gpt.device import compute_memory_budget, read_physical_memory
from niels_gpt.errors import NielsError, OutOfMemory
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.results import read_results
from train.config.schema import RunCfg
from train.hardware import batch_search
from train.hardware.batch_probe import Probe
from train.hardware.batch_search import (
    choose_batch,
    list_candidates,
    pick_fastest,
    probe_candidates,
    set_microbatch_size,
)

CPU, MIB = torch.device("cpu"), 2**20
AUTO = ["batch=auto", "global_B=8"]
FASTER = {1: 100.0, 2: 180.0, 4: 300.0, 8: 400.0}
Asked = list[int]


def fake(
    speeds: dict[int, float] | Iterator[float],
    asked: Asked | None = None,
    mib: Callable[[int], int] = lambda B: 300,
) -> AbstractContextManager[Any]:
    """Let speeds by B, or in their order, stand in for the child processes; `asked` gets the B of each."""

    def answer(module: str, stdin: str, **_: object) -> subprocess.CompletedProcess[str]:
        train = RunCfg.model_validate_json(stdin).train
        assert train.effective_batch % train.B == 0
        if asked is not None:
            asked.append(train.B)
        speed = speeds[train.B] if isinstance(speeds, dict) else next(speeds)
        probe = Probe(train.B, speed, mib(train.B) * MIB)
        return subprocess.CompletedProcess(module, 0, json.dumps(asdict(probe)), "")

    return mock.patch.object(batch_search, "run_module", answer)


NOT_MEASURED = mock.patch.object(batch_search, "run_module", side_effect=AssertionError("measured again"))


def split_of(folder: Path) -> tuple[int, int]:
    train_cfg = read_checkpoint(folder / "latest.pt")["train_cfg"]
    return train_cfg["B"], train_cfg["accum_steps"]


@pytest.mark.slow
def test_auto_is_the_training_of_the_B_it_chose_and_goes_on_with_it(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Real child processes; then the same command with more steps, which measures nothing."""
    with caplog.at_level(logging.INFO, logger="niels_gpt"):
        folder = run_folder("batch=auto", "train.B=2", "train.accum_steps=1")
    B, accum_steps = split_of(folder / "pretrain")
    assert B * accum_steps == 2
    table = [line.split() for line in caplog.text.splitlines() if line.strip().endswith("chosen")]
    assert [row[:2] for row in table] == [[str(B), str(accum_steps)]]
    with NOT_MEASURED, caplog.at_level(logging.INFO, logger="niels_gpt"):
        run_folder("batch=auto", "train.B=2", "train.accum_steps=1", "train.total_steps=6")
    assert f"train.B={B} train.accum_steps={accum_steps} as stored in batch.json" in caplog.text
    fixed = run_folder(f"train.B={B}", f"train.accum_steps={accum_steps}", name="fixed")
    run_folder(f"train.B={B}", f"train.accum_steps={accum_steps}", "train.total_steps=6", name="fixed")
    for key in ("model_state", "optimizer_state", "step", "best_val_loss"):
        ours, theirs = (read_checkpoint(path / "pretrain" / "latest.pt")[key] for path in (folder, fixed))
        assert same(ours, theirs), key


def test_a_budget_that_nothing_fits_ends_in_one_message_with_the_ways_out(run_folder: Run, tmp_path: Path) -> None:
    said = r"even train.B=1 fits in 10 MiB \(memory_budget_gb=0.01\) with model.T=64: out of memory: takes 300 MiB"
    with fake(FASTER), pytest.raises(OutOfMemory, match=said) as caught:
        run_folder(*AUTO, "memory_budget_gb=0.01")
    assert caught.value.exit_code == 6
    for way in ("memory=ckpt", "smaller model.T", "larger memory_budget_gb"):
        assert way in caught.value.hint
    assert not (tmp_path / "run" / "pretrain").exists() and not (tmp_path / "run" / "batch.json").exists()


def test_both_phases_take_the_fastest_in_one_search_and_are_known_again_when_finished(run_folder: Run) -> None:
    asked: Asked = []
    with fake(FASTER, asked):
        folder = run_folder(*AUTO, experiment="smoke_pipeline")
    assert asked == [1, 2, 4, 8]
    assert split_of(folder / "pretrain") == split_of(folder / "sft") == (8, 1)
    (choice,) = json.loads((folder / "batch.json").read_text())["choices"]
    assert (choice["B"], choice["asked"]["effective_batch"]) == (8, 8)
    (folder / "batch.json").unlink()
    settings = read_results(folder)["pretrain"].settings["train"]
    assert settings["effective_batch"] == 8 and not settings.keys() & {"B", "accum_steps"}
    with NOT_MEASURED:
        run_folder("batch=auto", "train.B=1", "train.accum_steps=8", experiment="smoke_pipeline")


def test_what_would_not_fit_is_not_tried(plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (cfg,), asked = plan(*AUTO, "memory_budget_gb=0.8"), Asked()
    with fake(FASTER, asked, mib=lambda B: 200 + 100 * B), caplog.at_level(logging.INFO, logger="niels_gpt"):
        assert choose_batch(cfg).train.B == 4
    assert asked == [1, 2, 4]
    assert re.search(r"^8  1 +would take about 1,000 MiB: not tried$", caplog.text, re.MULTILINE)


def test_what_took_more_than_the_budget_is_not_taken(plan: Plan) -> None:
    with fake(FASTER, mib=lambda B: 900 if B > 1 else 300):
        tried = probe_candidates(plan(*AUTO)[0], 800 * MIB)
    assert [probe.trouble for probe in tried] == ["", "out of memory: takes 900 MiB"]
    assert pick_fastest(tried) == tried[0]


@pytest.mark.parametrize(
    ("speeds", "expected", "taken"),
    [
        ([100, 200, 150, 140, 200], [1, 2, 4, 8, 2], 2),  # larger ones get slower: the best once more, and the end
        ([100, 20, 30, 10, 40, 50], [1, 2, 4, 1, 8, 16], 16),  # the machine became busy meanwhile
    ],
)
def test_the_search_ends_where_larger_ones_only_get_slower(
    plan: Plan, speeds: list[float], expected: Asked, taken: int
) -> None:
    with fake(iter(speeds), asked := Asked()):
        best = pick_fastest(probe_candidates(plan("batch=auto", "global_B=16")[0], 1 << 40))
    assert asked == expected and best and best.B == taken


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [
        (-9, "out of memory: the process was ended by signal 9", OutOfMemory),
        (1, "could not be measured: No module named torch", NielsError),
    ],
)
def test_a_child_that_dies_is_explained(plan: Plan, code: int, said: str, error: type[NielsError]) -> None:
    died = subprocess.CompletedProcess("python", code, "", "Traceback\nNo module named torch\n")
    with mock.patch.object(batch_search, "run_module", return_value=died):
        with pytest.raises(error, match=said) as caught:
            choose_batch(plan(*AUTO)[0])
    assert type(caught.value) is error and caught.value.hint


@pytest.mark.parametrize("content", ["{", '{"choices": [{"asked": {"effective_batch": 8}}]}', '{"choices": [7]}'])
def test_a_damaged_memory_is_measured_again(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "batch.json").write_text(content)
    with fake(FASTER, asked := Asked()):
        cfg = choose_batch(plan(*AUTO)[0])
    assert cfg.train.B == 8 and asked
    assert "batch.json cannot be used" in caplog.text
    with NOT_MEASURED:
        assert choose_batch(plan(*AUTO)[0]) == cfg


def test_what_changes_the_cost_of_a_step_is_measured_again(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    costly = ["memory=ckpt", "memory_budget_gb=3", "model.C=64", "global_B=4", "optim=adamw", "compile=on"]
    for other in ([], *([one] for one in costly)):
        with fake(FASTER, asked := Asked()):
            choose_batch(plan(*AUTO, *other)[0])
        assert asked, other
    with NOT_MEASURED:
        choose_batch(plan(*AUTO, "train.base_lr=0.1", "train.total_steps=9")[0])
    with mock.patch.object(torch, "get_num_threads", return_value=7), fake(FASTER, asked := Asked()):
        choose_batch(plan(*AUTO)[0])
    assert asked, "other threads"


@pytest.mark.parametrize(
    ("effective_batch", "expected"),
    [(1, [1]), (17, [1, 17]), (60, [1, 2, 4, 10, 20, 60]), (131072, [2**n for n in range(1, 17)])],
)
def test_candidates_divide_the_effective_batch_and_double_at_least(
    effective_batch: int, expected: list[int]
) -> None:
    assert list_candidates(effective_batch) == expected


@pytest.mark.parametrize("effective_batch", [8, 49152])
def test_every_candidate_is_a_split_that_the_schema_takes(plan: Plan, effective_batch: int) -> None:
    (cfg,) = plan("batch=auto", f"global_B={effective_batch}")
    for B in [cfg.train.B, *list_candidates(effective_batch)]:
        train = RunCfg.model_validate_json(set_microbatch_size(cfg, B).model_dump_json()).train
        assert (train.B, train.accum_steps) == (B, effective_batch // B)


@pytest.mark.slow
def test_a_childs_memory_does_not_begin_at_its_parents() -> None:
    ballast = b"1" * (1 << 30)  # torch itself takes half of it where it was built for CUDA
    code = "from niels_gpt.device import measure_memory; import torch; print(measure_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert 0 < int(done.stdout) < len(ballast)


def test_the_budget_is_most_of_what_the_device_has() -> None:
    assert 0 < compute_memory_budget(CPU) < read_physical_memory()
    with mock.patch.object(torch.mps, "recommended_max_memory", return_value=10 * 2**30):
        assert compute_memory_budget(torch.device("mps")) == 8 * 2**30
