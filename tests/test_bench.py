"""The benchmark races what it says, in fresh processes, and counts the work rightly; it never judges a time."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import cli
from torch.utils.flop_counter import FlopCounterMode

from niels_gpt.loss import next_token_loss
from niels_gpt.model.gpt import GPT
from train.bench import overhead
from train.bench.shapes import SHAPES


def test_a_race_has_all_turns_ratios_limits_and_peaks(tmp_path: Path) -> None:
    asked = ["toy", "--contestants", "ours-ckpt,bare", "--rounds", "1", "--steps", "2", "--json", "race.json"]
    done = cli(*asked, "--threads", "1", cwd=tmp_path, script="bench")
    assert done.returncode == 0, done.stderr
    (race,) = json.loads((tmp_path / "race.json").read_text(encoding="utf-8"))["races"]
    assert race["reference"] == "bare"
    assert {name: len(turns) for name, turns in race["turns"].items()} == {"ours-ckpt": 1, "bare": 1}
    assert all(len(turn["wall"]) == len(turn["cpu"]) == 2 for turn in race["turns"]["bare"])
    assert race["contestants"]["bare"]["cpu_ratio"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}
    assert all(limit["gflops"] > 0 and limit["copy_gb"] > 0 for limit in race["limits"])
    if sys.platform == "linux":
        assert race["contestants"]["bare"]["peak"] >= 0
    assert "of the limit" in done.stdout and "ours-ckpt" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["toy", "--contestants", "ours,nobody"], "error: there is no contestant nobody"),
        (["huge"], "error: there is no shape huge"),
        (["toy", "--rounds", "0"], "--rounds, --steps, --warmup and --threads are at least 1"),
        (["toy", "--json", "no/where.json"], "there is no folder no"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = cli(*arguments, cwd=tmp_path, script="bench")
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_the_work_of_a_step_is_that_of_its_matrix_products() -> None:
    shape = SHAPES["toy"]
    model, ids = GPT(shape.model), torch.zeros(shape.B, shape.model.T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model(ids), ids, 1.0).backward()
    m, counted = shape.model, counter.get_total_flops() * shape.accum_steps
    attention = 6 * m.L * m.T * m.C * shape.tokens  # torch does not count its fused kernel on the CPU
    assert counted == shape.flops - attention


def test_what_a_run_adds_is_measured_of_real_steps_and_real_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overhead, "SAVED", SHAPES["toy"].model)
    monkeypatch.setattr(overhead, "BATCH_SECONDS", 0.001)
    said: list[str] = []
    found = overhead.measured(["toy"], steps=2, warmup=1, threads=1, tries=2, say=said.append)
    toy = found["overhead"]["toy"]
    assert toy["parts"].keys() == {"draw", "require_ids", "require_finite", "metrics"}
    assert all(0 < seconds < toy["step"] for seconds in toy["parts"].values())
    assert toy["share"] == pytest.approx((sum(toy["parts"].values()) - toy["parts"]["draw"]) / toy["step"])
    saved = found["saving"]
    assert saved["parameters"] == GPT(SHAPES["toy"].model).parameter_count()
    assert saved["size"] > 3 * 4 * saved["parameters"], "weights and both averages of AdamW"
    assert "share" in said[0] and "verify and load" in said[1]
    assert list(tmp_path.iterdir()) == []
