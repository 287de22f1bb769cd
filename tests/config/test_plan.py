"""The group batch: a step keeps its sequences however it is split (promise 3); bad splits are in test_load."""

from conftest import Compose

from train.config import load_plan


def test_with_iso_accum_steps_follows_from_the_B_of_each_phase_whatever_it_is_set_to(composed: Compose) -> None:
    own = ("train.B=16", "sft.train.B=4", "train.accum_steps=3", "sft.train.accum_steps=5")
    for cfg, split in zip(load_plan(composed("batch=iso", "global_B=32", *own)), ((16, 2), (4, 8)), strict=True):
        assert (cfg.train.B, cfg.train.accum_steps, cfg.batch) == (*split, "iso")


def test_a_phase_that_is_not_carried_out_is_not_judged(composed: Compose) -> None:
    assert load_plan(composed("phase=pretrain", "batch=iso", "global_B=32", "sft.train.B=5"))
    assert load_plan(composed("phase=sft", "global_B=32", "train.B=5", "sft.train.B=8", "sft.train.accum_steps=4"))


def test_a_global_batch_that_agrees_needs_no_iso(composed: Compose) -> None:
    assert load_plan(composed("global_B=8"))[0].train.effective_batch == 8
