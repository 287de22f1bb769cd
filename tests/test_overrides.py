"""What is said of a refused override: the setting that was meant or how it is written, where that is no guess."""

from pathlib import Path

import pytest
import warm

LIST = "a list is written"
MEANT = [
    {
        "train.lr=3": "; did you mean train.base_lr or train.min_lr?",
        "sft.lr=3": "; did you mean sft.train.base_lr or sft.train.min_lr?",
        "train.Bee=3": "; did you mean train.B?",
        "trian.B=3": "; did you mean train.B?",
        "train.dropout=0.1": "; did you mean model.dropout?",
        "sft.train.total_step=3": "; did you mean sft.train.total_steps?",
        "train.foo=3": "'foo' not in 'TrainCfgSchemaNode'",
        "train=null": "field 'train' is not Optional",
    },
    {
        "data.sources=[{kind:synthetic,weihgt:3}]": "; did you mean weight?",
        "+sft.data.sources=[{weihgt:3}]": "; did you mean weight?",
        "data.sources=[3]": "int is not a subclass of SourceCfgNode. value: 3",
        "train={Bee:3}": "; did you mean train.B?",
        "train.betas=0.9": f"; {LIST} 'train.betas=[...]'",
        "data.files={a:b}": f"; {LIST} 'data.files=[...]'",
        "train.betas=[a,b]": "Value 'a' of type 'str' could not be converted to Float",
    },
]


@pytest.mark.parametrize("meant", MEANT, ids=["names", "values"])
def test_what_was_meant_is_said_only_where_it_is_no_guess(tmp_path: Path, meant: dict[str, str]) -> None:
    done = warm.cli(*meant, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(meant)
    for override, ending in meant.items():
        key = override.lstrip("+").split("=")[0]
        assert any(line.endswith(ending) and key in line for line in lines), (override, lines)
