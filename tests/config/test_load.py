"""The gate: every bad setting is named in Hydra's dotted form, all at once, before anything is made."""

import sys

import pytest
from conftest import Compose

from niels_gpt.errors import ConfigError
from train.config import load_plan
from train.config.schema import TrainCfgSchema

BAD = [
    (["train.B=0"], "train.B=0: must be an integer, 1 to 65,536"),
    (["train.base_lr=nan"], "train.base_lr=nan: "),
    (["train.warmup_steps=9", "train.total_steps=8"], "train: warmup_steps=9 is more than total_steps=8"),
    (["train.min_lr=1", "train.base_lr=0.1"], "train: min_lr=1.0 is more than base_lr=0.1"),
    (["train.betas=[0.9,1.5]"], "train: betas=[0.9, 1.5] must lie in [0, 1)"),
    (["model.H=3"], "model: C=128 is not divisible by H=3"),
    (["model.C=12", "model.H=4"], "model: C=12 over H=4 heads gives an odd head size"),
    (["model.dropout=1.0"], "model.dropout=1.0: must be a number, at least 0 and below 1"),
    pytest.param(
        ["device=mps"],
        "device=mps is not available on this machine; use device=cpu or device=auto",
        marks=pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have mps"),
    ),
    (["name=../../x"], "name=../../x: must be up to 64 letters"),
    (["data=text"], "data: kind=text needs files"),
    (["data=text", "data.files=[a.txt]"], "sft.data: no dialogues in text, only text; use phase=pretrain"),
    (["sft.model.C=64"], "sft.model: only dropout may differ"),
    (["resume=runs/a/pretrain/best.pt"], "applies to a single phase"),
    (["sft.train.B=0"], "sft.train.B=0: "),
    (["data.files=3"], "data.files=3: must be a list of text"),
    (["data.files=[a,3]"], "data.files.1=3: must be text"),
    (["data.sources=[{kind:text,files:3}]"], "data.sources.0.files=3: must be a list of text"),
    (["objective=[lss]"], "objective.0=lss: must be loss or memory"),
    (["data.val_files=a"], "kind=pydocs has no val_files; use val_fraction"),
    (["data=hf", "data.repo=a/b", "data.val_files=a"], "kind=hf has no val_files; use val_split or val_fraction"),
    (
        ["data=text", "phase=pretrain", "data.files=a", "data.val_files=b", "data.val_fraction=0.1"],
        "val_files are all of the validation split; leave val_fraction out",
    ),
    (["data.val_source=foo"], "val_source=foo must name one of the sources ['pydocs']"),
    (
        ["data.sources=[{kind:text,files:[a]},{kind:jsonl,files:[b]}]", "data.val_source=text"],
        "sft.data: no dialogues in text, only text",
    ),
    (["batch=iso"], "batch=iso needs global_B=N (sequences per step)"),
    (
        ["batch=iso", "global_B=32", "sft.train.B=12"],
        "sft.train.B=12 does not divide global_B=32; the nearest that does is 8",
    ),
    (["batch=iso", "global_B=65537"], "global_B=65537: must be an integer, 1 to 65,536, or null"),
    (["global_B=32"], "train.B=4 x accum_steps=2 is 8, not global_B=32; add batch=iso"),
    (["+_target_=os.system"], "_target_ is unknown"),
    (["data.sources=[{kind:pydocs,weight:5000},{kind:synthetic}]"], "synthetic has a share of 0.00020"),
]


@pytest.mark.parametrize(("overrides", "said"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_setting_is_refused_by_name(composed: Compose, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plan(composed(*overrides))
    assert said in str(caught.value)


def test_all_bad_settings_are_reported_at_once_a_line_each(composed: Compose) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plan(composed("train.B=0", "train.grad_clip=-1", "model.H=3"))
    lines = str(caught.value).splitlines()
    assert {line.split(":")[0].split("=")[0] for line in lines} == {"train.B", "train.grad_clip", "model"}
    assert len(lines) == 3  # what the second phase merely follows is not said twice


def test_a_batch_that_cannot_be_is_said_once_for_both_phases(composed: Compose) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plan(composed("batch=iso", "global_B=32", "train.B=5"))
    assert len(str(caught.value).splitlines()) == 1


def test_settings_cannot_be_changed_after_the_gate(composed: Compose) -> None:
    cfg = load_plan(composed())[0]
    with pytest.raises(ValueError, match="frozen"):
        cfg.train.B = 3  # type: ignore[misc]


def test_warm_up_follows_the_length_of_the_phase_unless_it_is_set() -> None:
    assert TrainCfgSchema(total_steps=2).warmup == 0
    assert TrainCfgSchema(total_steps=400).warmup == 40
    assert TrainCfgSchema(total_steps=400, warmup_steps=3).warmup == 3


def test_a_second_phase_with_data_of_its_own_does_not_follow_the_val_files_of_the_first(composed: Compose) -> None:
    own = ("data=text", "data.files=a", "data.val_files=b")
    first, second = load_plan(composed(*own, "+data@sft.data=jsonl", "sft.data.files=c"))
    assert (first.data.val_files, second.data.val_files) == (("b",), ())
