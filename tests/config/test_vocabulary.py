"""V is a number in every RunCfg: the one that is set, else the tokenizer's."""

from pathlib import Path
from unittest import mock

import pytest
from conftest import Compose
from support.foreign_tokenizers import make_gpt2

from niels_gpt.errors import ConfigError
from niels_gpt.untrusted import read_json
from train.config import load_plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_gpt2(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("option", ["model=tiny", "model=small", "model=base", "experiment=smoke_pipeline"])
def test_the_tokenizer_alone_decides_V(composed: Compose, path: Path, option: str) -> None:
    with mock.patch("niels_gpt.adopted_tokenizer.read_json", wraps=read_json) as read:
        plan = load_plan(composed(option, f"data.tokenizer={path}"))
    assert [cfg.model.V for cfg in plan] == [305, 305]
    assert read.call_count == 1, "one reading is enough for both phases"
    assert {cfg.model.V for cfg in load_plan(composed(option, "data.tokenizer=bytes"))} == {256}
    assert load_plan(composed(option))[0].model.V >= 512


def test_a_number_that_is_set_counts_if_it_fits(composed: Compose, path: Path) -> None:
    assert load_plan(composed("model.V=300"))[0].model.V == 300
    assert load_plan(composed("model.V=305", f"data.tokenizer={path}"))[0].model.V == 305
    assert load_plan(composed("model.V=null", f"data.tokenizer={path}", "phase=sft"))[0].model.V == 305


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model.V=4096", "data.tokenizer=PATH"],
            "model.V=4096, but data.tokenizer=PATH has 305; use model.V=null",
        ),
        (["model.V=300", "data.tokenizer=bytes"], "model.V=300, but data.tokenizer=bytes has 256"),
        (["model.V=300", "data.tokenizer=PATH", "phase=sft"], "sft.model.V=300, but data.tokenizer=PATH has 305"),
        (["model.V=null"], "model.V=null: data.tokenizer=bpe needs a number; use one, such as model.V=4096"),
        (
            ["data.tokenizer=FOLDER"],
            "tokenizer=FOLDER must be bpe, bytes or the path of a tokenizer.json; use FOLDER/tokenizer.json",
        ),
        (["data.tokenizer=byte"], "data: tokenizer=byte must be bpe, bytes or the path of a tokenizer.json"),
        (
            ["data.tokenizer=PATH.json"],
            "data.tokenizer=PATH.json: cannot be read (No such file or directory); give",
        ),
        (["sft.data.tokenizer=bytes"], "sft.data.tokenizer=bytes must be data.tokenizer, because phases share it"),
    ],
)
def test_a_number_or_a_file_that_does_not_fit_is_refused(
    composed: Compose, path: Path, overrides: list[str], said: str
) -> None:
    def fill(word: str) -> str:
        return word.replace("PATH", str(path)).replace("FOLDER", str(path.parent))

    with pytest.raises(ConfigError) as caught:
        load_plan(composed(*map(fill, overrides)))
    reason, _, advice = fill(said).partition("; ")
    assert reason in str(caught.value) and advice in caught.value.hint
    assert len(str(caught.value).splitlines()) == 1
