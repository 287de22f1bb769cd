"""The group batch: a step keeps its sequences however it is split (promise 3); bad splits are in test_load."""

from pathlib import Path

import pytest
from conftest import Compose

from train.config import load_plan


@pytest.mark.parametrize("B", [4, 8, 16, 32])
def test_with_iso_accum_steps_follows_from_B(composed: Compose, B: int) -> None:
    for cfg in load_plan(composed("experiment=smoke_pipeline", "batch=iso", "global_B=32", f"train.B={B}")):
        assert (cfg.train.B, cfg.train.accum_steps, cfg.batch) == (B, 32 // B, "iso")


def test_with_iso_each_phase_may_split_its_steps_otherwise(composed: Compose) -> None:
    first, second = load_plan(composed("batch=iso", "global_B=32", "train.B=16", "sft.train.B=4"))
    assert (first.train.accum_steps, second.train.accum_steps) == (2, 8)


def test_a_phase_that_is_not_carried_out_is_not_judged(composed: Compose) -> None:
    assert load_plan(composed("phase=pretrain", "batch=iso", "global_B=32", "sft.train.B=5"))
    assert load_plan(composed("phase=sft", "global_B=32", "train.B=5", "sft.train.B=8", "sft.train.accum_steps=4"))


def test_an_experiment_can_choose_iso(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults: [override /batch: iso]\nglobal_B: 12\ntrain: {B: 3, accum_steps: 1}\n"
    )
    cfg = load_plan(composed("experiment=own", f"hydra.searchpath=[file://{tmp_path}]"))[0]
    assert (cfg.train.B, cfg.train.accum_steps) == (3, 4)


def test_a_global_batch_that_agrees_needs_no_iso(composed: Compose) -> None:
    assert load_plan(composed("global_B=8"))[0].train.effective_batch == 8


def test_with_iso_accum_steps_is_computed_whatever_it_is_set_to(composed: Compose) -> None:
    plan = load_plan(composed("batch=iso", "global_B=32", "train.accum_steps=3", "sft.train.accum_steps=5"))
    assert [cfg.train.effective_batch for cfg in plan] == [32, 32]
