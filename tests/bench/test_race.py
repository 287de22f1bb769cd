"""The benchmark takes turns in fresh processes and counts the work correctly; no test judges a time."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support import processes
from torch.utils.flop_counter import FlopCounterMode

from niels_gpt.loss import next_token_loss
from niels_gpt.model.gpt import GPT
from train.bench import overhead, race
from train.bench.contestants import CONTESTANTS, Contestant
from train.bench.shapes import SHAPES

RACER = "train.bench.worker"


def note_process(folder: Path, B: int) -> None:
    """Leave a file for each process that is begun; measure the machine once, and toy with B sequences."""
    vars(race)["TRIES"] = 1
    SHAPES["toy"] = SHAPES["toy"].model_copy(update={"B": B})
    name = sys.orig_argv[3] if sys.argv[0] == "-m" else Path(sys.argv[0]).name
    (folder / str(os.getpid())).write_text(name, encoding="utf-8")


def bench(*arguments: str, cwd: Path, B: int = 2) -> tuple[str, list[str]]:
    """Return what the benchmark prints, and the commands and modules that were begun, each as a process."""
    (pids := cwd / "pids").mkdir()
    done = processes.cli(*arguments, cwd=cwd, script="bench", before=partial(note_process, pids, B))
    assert done.returncode == 0, done.stderr
    return done.stdout, sorted(path.read_text(encoding="utf-8") for path in pids.iterdir())


@pytest.mark.slow
def test_a_race_has_all_turns_ratios_limits_and_peaks_each_from_a_process_of_its_own(tmp_path: Path) -> None:
    own = ["--rounds", "1", "--steps", "2", "--out", "race.json"]
    asked = ["race", "toy", "--contestants", "ours-ckpt,bare", *own]
    said, processes = bench(*asked, cwd=tmp_path)
    turns, peaks, limits = 2, 2, 1
    assert processes == ["niels_gpt", *[RACER] * (turns + peaks + limits)]
    (race,) = json.loads((tmp_path / "race.json").read_text(encoding="utf-8"))["races"]
    assert race["contestants"].keys() == {"ours-ckpt", "bare"} and race["gflops_limit"] > 0
    bare = race["contestants"]["bare"]
    assert len(bare["turns"]) == 1 and bare["turns"][0]["cpu"] == bare["cpu"] > 0
    assert bare["times_faster"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}, "than the last, which it is"
    assert "of the limit" in said and "ours-ckpt" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["race", "huge"], "error: there is no shape huge"),
        (["growth", "T", "--shape", "toy", "--factors", "0.3"], "error: T=4.8: "),
        (["growth", "B", "--factors", "inf"], "error: B=inf: "),
        (["growth", "C"], "error: there is no axis C"),
        (["growth", "--figure", "no/where.svg"], "no/where.svg cannot be created: there is no folder no"),
        (["steady", "toy", "--steps", "5"], "argument --steps: must be at least 10, got 5"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = processes.cli(*arguments, cwd=tmp_path, script="bench")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert said in done.stderr and "Traceback" not in done.stderr


def test_the_work_of_a_step_is_that_of_its_matrix_products_and_recomputation_makes_each_block_again() -> None:
    shape, flops = SHAPES["toy"], {}
    for ckpt in (False, True):
        model, ids = GPT(shape.model, activation_checkpointing=ckpt), torch.zeros(shape.B, shape.model.T).long()
        with FlopCounterMode(display=False) as counter:
            next_token_loss(model(ids), ids, 1.0).backward()
        flops[ckpt] = counter.get_total_flops() * shape.accum_steps
    # Of the forward pass; torch does not count it.
    attention = 2 * shape.model.L * shape.model.T * shape.model.C * shape.tokens
    assert flops[False] == shape.flops - 3 * attention
    assert flops[True] - flops[False] == shape.flops_again - attention


@pytest.mark.parametrize("name", ["ours", "bare", pytest.param("hf", marks=pytest.mark.long)])
def test_every_contestant_laps_each_step_and_recomputes_with_ckpt(name: str) -> None:
    if name == "hf":
        pytest.importorskip("transformers", reason="needs the extra bench")
    flops = [flops_of_laps(CONTESTANTS[asked]) for asked in (name, f"{name}-ckpt")]
    assert all(both == 2 * first > 0 for first, both in flops)
    assert flops[1][0] > flops[0][0]


def flops_of_laps(contestant: Contestant) -> list[int]:
    laps: list[int] = []
    with FlopCounterMode(display=False) as counter:
        contestant.take(SHAPES["toy"], contestant.settings, 2, lambda: laps.append(counter.get_total_flops()))
    return laps


@pytest.mark.slow
def test_growth_stands_beside_theory_in_a_table_a_figure_and_json(tmp_path: Path) -> None:
    asked = ["growth", "T", "--shape", "toy", "--factors", "1", "8", "--steps", "1"]
    said, _ = bench(*asked, "--figure", "growth.svg", "--out", "growth.json", cwd=tmp_path)
    growth = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))["growth"]
    points = {(point["size"], point["memory"]): point for point in growth["points"]}
    assert points.keys() == {(T, memory) for T in (16, 128) for memory in ("off", "ckpt")}
    assert all(point["cpu"] > 0 for point in points.values())
    middle = points[16, "off"]
    assert middle["tokens_in_theory"] == pytest.approx(middle["tokens_per_second"]), "there it is fitted"
    assert points[16, "ckpt"]["tokens_in_theory"] < middle["tokens_in_theory"]
    for memory in ("off", "ckpt"):
        assert points[128, memory]["peak"] > 4 * points[16, memory]["peak"]
        assert points[128, memory]["tokens_in_theory"] < points[16, memory]["tokens_in_theory"]
    assert "| T=16 " in said and "| T=128 " in said and "fitted there" in said
    svg = (tmp_path / "growth.svg").read_text(encoding="utf-8")
    assert svg.count('<g id="axes_') == 2
    assert "fill: #ffffff" in svg.partition('<g id="axes_')[0], "a white card on a page of any colour"


@pytest.mark.slow
def test_memory_does_not_grow_over_many_steps(tmp_path: Path) -> None:
    asked = ["steady", "toy", "--steps", "50", "--out", "steady.json"]
    bench(*asked, cwd=tmp_path, B=16)  # of which 4 steps make two epochs
    stays = json.loads((tmp_path / "steady.json").read_text(encoding="utf-8"))["steady"]["toy"]
    assert [stay["contestant"] for stay in stays] == ["ours", "ours", "ours-ckpt", "ours-ckpt"]
    for early, late in zip(stays[::2], stays[1::2], strict=True):
        assert (early["step"], late["step"]) == (5, 50) and early["tensors"] > 0
        assert (early["bytes"], early["tensors"]) == (late["bytes"], late["tensors"])


def two_spin_counts() -> None:
    overhead.SPIN_COUNTS = overhead.SPIN_COUNTS[::5]


@pytest.mark.slow
def test_spin_counts_are_measured_alone_and_beside_busy_processes(tmp_path: Path) -> None:
    asked = ["spinning", "toy", "--rounds", "1", "--steps", "1", "--out", "spinning.json"]
    done = processes.cli(*asked, cwd=tmp_path, script="bench", before=two_spin_counts)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "spinning.json").read_text(encoding="utf-8"))["spinning"]
    assert found["tokens_per_second"].keys() == {"300000", "0"}
    for speeds in found["tokens_per_second"].values():
        assert len(speeds["quiet"]) == len(speeds["busy"]) == 1 and min(*speeds["quiet"], *speeds["busy"]) > 0
    assert "busy tokens/s" in done.stdout


def small_saves() -> None:
    overhead.SAVED, overhead.REPEATS = SHAPES["toy"].model, 10


def test_what_a_run_adds_is_measured_of_real_steps_and_real_checkpoints(tmp_path: Path) -> None:
    asked = ["overhead", "toy", "--steps", "2", "--out", "overhead.json"]
    done = processes.cli(*asked, cwd=tmp_path, script="bench", before=small_saves)
    found = json.loads((tmp_path / "overhead.json").read_text(encoding="utf-8"))
    toy = found["overhead"]["toy"]
    assert toy["parts"].keys() == {"draw", "require_ids", "finite", "metrics"}
    assert all(0 < seconds < toy["step"] for seconds in toy["parts"].values())
    assert 0 < toy["isolated"] != toy["step"] and "data.isolate=true" in done.stdout
    assert toy["share"] == pytest.approx((sum(toy["parts"].values()) - toy["parts"]["draw"]) / toy["step"])
    saved = found["saving"]
    assert saved["parameters"] == GPT(SHAPES["toy"].model).parameter_count()
    assert saved["size"] > 3 * 4 * saved["parameters"], "weights and both averages of AdamW"
    assert "share" in done.stdout and "verify and load" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["overhead.json"]
