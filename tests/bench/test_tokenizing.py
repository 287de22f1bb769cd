"""The benchmark of tokenization takes turns with the library, and keeps within its memory."""

import json
from pathlib import Path

import pytest
from conftest import cli


@pytest.mark.slow
def test_tokenizing_is_measured_beside_the_library(tmp_path: Path) -> None:
    words = ["tokenize", "8", "--form", "jsonl", "--rounds", "1", "--out", "a.json"]
    done = cli(*words, cwd=tmp_path, script="bench")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())["tokenize"]["sizes"]["8"]
    assert 0 < found["peak"] < 250e6 and 0 < found["warm"] < 1
    assert found["ours"].keys() == found["library"].keys() == {"wall", "cpu"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
