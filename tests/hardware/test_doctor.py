"""The doctor reports hardware, arithmetic and the cost of a step, and lists what it could not check."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import Plan
from support import processes

from niels_gpt.errors import ConfigError
from train.cli.output import require_new_file, write_result
from train.hardware import step_cost
from train.hardware.doctor import examine_machine, format_costs
from train.hardware.memory_tracker import LiveBytes
from train.hardware.step_cost import list_variants, measure_cost

CPU, MPS = torch.device("cpu"), torch.device("mps")
DEEP = ["experiment=smoke_pretrain", "model.L=8", "--steps", "1"]
MACHINE = {"platform", "chip", "cores", "memory", "python", "torch", "threads", "mps", "device"}


def test_one_command_prints_the_tables_and_writes_them(tmp_path: Path) -> None:
    done = processes.cli(*DEEP, "device=cpu", "--out", "doctor.json", cwd=tmp_path, script="doctor")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines if line} >= MACHINE | {"step", "off", "precision"}
    assert any(line.startswith("not checked: Metal's arithmetic") for line in lines)
    assert lines[-1] == "wrote doctor.json"
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["machine"].keys() >= MACHINE
    off, ckpt = report["costs"]
    assert (off["precision"], off["memory"], ckpt["memory"]) == ("off", "off", "ckpt")
    assert all(
        cost["seconds"] > 0 and cost["tokens_per_second"] > 0 and not cost["trouble"] for cost in (off, ckpt)
    )
    assert ckpt["peak"] < off["peak"] / 2
    assert off["peak"] - ckpt["peak"] == pytest.approx(off["theory"] - ckpt["theory"], rel=0.1)


def test_a_report_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "doctor.json").touch()
    with pytest.raises(ConfigError, match="already exists"):
        require_new_file(str(tmp_path / "doctor.json"))


def test_a_report_is_json_that_any_program_reads(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    write_result(tmp_path / "a.json", {"costs": [1.5, float("nan")], "worst": (float("inf"), "none")})
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert read == {"costs": [1.5, None], "worst": [None, "none"]}


def test_the_counter_sees_what_lives_and_what_has_gone() -> None:
    before = torch.ones(1000)
    with LiveBytes() as live:
        kept = (before * 2).view(10, 100)[3]  # a view holds all of its storage
        before.add_(1)
        assert (live.now, live.peak) == (4000, 4000)
        torch.ones(500)
        assert (live.now, live.peak) == (4000, 6000)
        del kept
        assert (live.now, live.peak) == (0, 6000)


def test_what_a_graph_saved_lives_until_its_backward_pass() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with LiveBytes() as live:
        loss = (weight * 2).square().sum()
        assert live.now == 4000 + 4, "the product, which square needs, and the loss"
        loss.backward()
        assert live.now == 4000 + 4, "the gradient and the loss"


def test_what_has_no_room_is_said_in_its_row(plan: Plan) -> None:
    error = RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)\nand more")
    (cfg,) = plan()
    with mock.patch.object(step_cost, "optimizer_step", side_effect=error):
        costs = [measure_cost(CPU, variant, 1) for variant in list_variants(CPU, cfg)]
    assert [cost.trouble for cost in costs] == ["out of memory"] * 2
    assert format_costs(costs).splitlines()[1].split(maxsplit=2) == ["off", "off", "out of memory"]


def test_mps_has_every_precision_with_and_without_recomputation(plan: Plan) -> None:
    settings = [variant.train for variant in list_variants(MPS, plan()[0])]
    assert [(train.amp, train.amp_dtype) for train in settings[::2]] == [
        (True, "fp16"), (True, "bf16"), (False, "fp16"),
    ]  # fmt: skip
    assert [train.activation_checkpointing for train in settings] == [False, True] * 3


def test_what_mps_computes_wrongly_is_not_measured(plan: Plan) -> None:
    problems = mock.patch("train.hardware.preflight.find_problems", return_value=["a projection gave fp32"])
    with problems, mock.patch.object(step_cost, "make_step", side_effect=AssertionError):
        trouble = measure_cost(MPS, plan("precision=bf16")[0], 1).trouble
    assert trouble.startswith("train.amp_dtype=bf16 does not work on mps: a projection gave fp32")


@pytest.mark.mps
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs mps")
def test_on_mps_every_variant_is_measured(plan: Plan) -> None:
    report = examine_machine(plan("device=mps")[0], 1)
    assert [cost["trouble"] for cost in report["costs"]] == [""] * 6
    assert all(cost["peak"] > 0 and cost["driver"] > 0 for cost in report["costs"])
