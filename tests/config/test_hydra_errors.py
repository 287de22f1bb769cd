"""A refused override: it is named wherever it stands, with the setting or the option that was meant."""

import sys
from pathlib import Path
from unittest import mock

import pytest
from conftest import Compose

from train.config.hydra_errors import Refusal, explain_refusal

MEANT = {
    "train.b=3": "train.b is unknown; did you mean train.B?",
    "train={Bee:3}": "train.Bee is unknown; did you mean train.B?",
    "trian.B=3": "trian.B is unknown; did you mean global_B or train.B?",
    "train.lr=3": "train.lr is unknown; did you mean train.base_lr or train.min_lr?",
    "sft.train.total_step=3": "sft.train.total_step is unknown; did you mean sft.train.total_steps?",
    "train.foo=3": "train.foo is unknown",
    "data.sources=[{kind:synthetic,weihgt:3}]": "data.sources: weihgt is unknown; did you mean weight?",
    "presicion=fp16": "presicion is unknown; did you mean precision?",
    "model=tny": "model=tny is not an option; choose from base, small, tiny; did you mean tiny?",
    "~train.B": "~train.B: a setting cannot be removed",
    "train.B": "train.B: not of the form setting=value",
    "train.B=[3": "train.B=[3: must be an integer, 1 to 65,536",
    "name=it's": "name=it's: must be up to 64 letters",
    "data.files=[a.md,": "data.files=[a.md,: cannot be read; quote a list with spaces, 'data.files=[a, b]'",
    "init_from=a(b)": "init_from=a(b): Unknown function 'a'; quote a list with spaces, ",
    "train.seed=1,2": "train.seed=1,2: add -m to sweep over these values, or write a list as 'train.seed=[...]'",
    "train.seed=range(1,3)": "train.seed=range(1,3): add -m to sweep",
    "experiment=null": "experiment=null: must be the name of an option",
    "+data@sft.data=3": "+data@sft.data=3: must be the name of an option",
    "model=[tiny": "model=[tiny: must be the name of an option",
    "train.B=int(a)": "train.B=int(a): invalid literal for int() with base 10: 'a'",
    "train.B=true": "train.B=true: must be an integer, 1 to 65,536",
    "train.betas=0.9": "train.betas=0.9: must be a list of 2 numbers",
    "train.betas=[a,b]": "train.betas=[a,b]: train.betas.0 must be a number",
    "train=null": "train=null: must be a mapping of settings",
    "data.sources=[{weight:x}]": "data.sources=[{weight:x}]: weight must be a number, above 0",
}
OTHERS = [
    *("train.seed=1", "train.min_lr=0.0001", "compile=off", "model.dropout=0.1", "data.val_fraction=0.1"),
    *("device=cpu", "name=other", "precision=off", "sft.train.seed=2"),
]


def refuse(composed: Compose, *overrides: str) -> str:
    with mock.patch.object(sys, "argv", ["train.py", *overrides]):
        with pytest.raises((*Refusal, ValueError)) as caught:
            composed(*overrides)
        return explain_refusal(caught.value)


@pytest.mark.parametrize(("override", "said"), MEANT.items(), ids=MEANT)
def test_a_refused_override_is_named_with_what_was_meant(composed: Compose, override: str, said: str) -> None:
    line = refuse(composed, override)
    assert said in line and line.isprintable()
    assert "did you mean" in said or "did you mean" not in line


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("{B: few}", "train.B must be an integer, 1 to 65,536"),
        ("{total_step: 3}", "train.total_step is unknown; did you mean train.total_steps?"),
    ],
)
def test_a_bad_setting_of_an_experiment_is_named_with_its_file(
    composed: Compose, tmp_path: Path, train: str, said: str
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\ntrain: {train}\n")
    line = refuse(composed, "experiment=own", f"hydra.searchpath=[file://{tmp_path}]")
    assert line == f"experiment/own: {said}"


@pytest.mark.parametrize("at", [0, len(OTHERS)])
@pytest.mark.parametrize("override", ["train.b=3", "model=tny", "train.B=[3", "experiment=null", "train.seed=1,2"])
def test_the_bad_one_of_ten_is_named_wherever_it_stands(composed: Compose, override: str, at: int) -> None:
    assert MEANT[override] in refuse(composed, *OTHERS[:at], override, *OTHERS[at:])
