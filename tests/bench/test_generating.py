"""The benchmark of generation measures what is installed, in turns."""

import json
from pathlib import Path

import pytest
from support.environments import call, make_environment
from support.processes import cli


def test_ours_is_measured_alone_and_nothing_is_left(finished_run: Path, tmp_path: Path) -> None:
    words = ["generate", str(finished_run), "--rounds", "3", "--tokens", "8", "--json"]
    done = cli(*words, cwd=tmp_path, script="bench")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["generate"]
    ours = found["engines"]["ours"]
    assert len(ours["turns"]) == 3 and ours["ours_to_it"] == 1.0
    assert 0 < ours["token"] < 60 and 0 < ours["prompt"] < 60
    assert not [*tmp_path.iterdir()]


def test_more_tokens_than_the_context_are_refused(finished_run: Path, tmp_path: Path) -> None:
    done = cli("generate", str(finished_run), "--tokens", "64", cwd=tmp_path, script="bench")
    assert done.returncode == 2
    assert "error: --tokens 64 leave no room for a prompt: the context has 64\n" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("environment", "packages", "engine"),
    [
        ("transformers-newest", ["transformers"], "transformers"),
        ("llama.cpp", ["xllamacpp", "gguf"], "llama.cpp"),
    ],
)
def test_others_take_turns(finished_run: Path, environment: str, packages: list[str], engine: str) -> None:
    python = make_environment(environment, *packages)
    words = ["generate", str(finished_run), "--rounds", "1", "--tokens", "8", "--json"]
    engines = json.loads(call(python, "-m", "niels_gpt", "bench", *words))["generate"][0]["engines"]
    assert engines.keys() == {"ours", engine} and engines[engine]["token"] > 0
