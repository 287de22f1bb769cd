"""A phase's peak memory leaves out memory that its process freed before."""

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import Plan
from support.processes import start_run

from niels_gpt.device import measure_memory, reset_peak_memory
from train.artifacts.metrics import read_metrics
from train.hardware.cpu import keep_freed_memory
from train.report.rows import read_row

CPU, MIB = torch.device("cpu"), 2**20


def restarts() -> bool:
    """Return whether this kernel lets a process restart its peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


RESTARTS = pytest.mark.skipif(not restarts(), reason="needs a /proc/self/clear_refs that can be written")


def hold(mib: int, *, kept: bool) -> None:
    """Hold memory and free it; `kept` leaves it to glibc, as a run's tensors are."""
    if kept:
        keep_freed_memory()
    torch.ones(mib * MIB // 4)
    assert measure_memory(CPU) > mib * MIB


@pytest.mark.slow
@RESTARTS
@pytest.mark.parametrize("kept", [False, True])
def test_what_the_process_held_before_the_run_is_not_in_its_peak(plan: Plan, kept: bool) -> None:
    loaded = plan()
    assert start_run(loaded, partial(hold, 1024, kept=kept)).end().returncode == 0
    assert 0 < (read_row(Path(loaded[0].dir)).peak_memory_gib or 0) < 1


@pytest.mark.slow
@RESTARTS
def test_a_smaller_phase_does_not_report_the_peak_of_the_one_before(plan: Plan) -> None:
    loaded = plan("model.T=256", "train.B=64", "train.accum_steps=1", "sft.train.B=1", experiment="smoke_pipeline")
    assert start_run(loaded).end().returncode == 0
    pretrain, sft = (
        max(event["memory"] for event in read_metrics(cfg.out / "metrics.jsonl") if event["event"] == "train")
        for cfg in loaded
    )
    assert sft < pretrain - 50 * MIB


@pytest.mark.slow
def test_where_the_peak_cannot_be_restarted_it_stays_that_of_the_process() -> None:
    hold(2048, kept=False)
    with mock.patch.object(Path, "write_text", side_effect=PermissionError):
        reset_peak_memory(CPU)
    assert measure_memory(CPU) > 2048 * MIB


def test_on_mps_the_driver_gives_back_what_is_free() -> None:
    with mock.patch.object(torch.mps, "empty_cache") as emptied:
        reset_peak_memory(torch.device("mps"))
    emptied.assert_called_once_with()
