"""Each logger's own reader shows each point of a run that was killed and resumed once, and its other facts."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, final, same
from support.environments import ask, make_environment
from support.processes import wait_until

pytestmark = pytest.mark.long
LOGGERS = ["tensorboard", "trackio", "wandb", "mlflow"]
READERS = {"wandb": ("wandb-reader", "wandb==0.19.*")}
EVERY = ["train.log_every=1", "train.ckpt_every=10", "train.eval_every=20", "train.total_steps=60"]
EVERY += ["sft.train.total_steps=60", "train.keep_last=9"]
DIES = """
import os, signal
from niels_gpt import storage
def die(path, notes):
    if path.parent.name == "loggers" and notes["pretrain"]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, notes)
write, storage.write_json = storage.write_json, die
"""


class Watched:
    """A run in a folder, in the environment of its logger."""

    def __init__(self, logger: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logger, self.folder, self.python = logger, folder, make_environment(logger, logger)
        monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))

    def start(self, *settings: str, code: str = "") -> subprocess.Popen[str]:
        """Start the run, as its user would; its processes run `code` first."""
        (self.folder / "code").mkdir(exist_ok=True)
        (self.folder / "code" / "sitecustomize.py").write_text(code)
        words = ["experiment=smoke_pipeline", "name=watched", f"logger={self.logger}", *EVERY, *settings]
        env = os.environ | {"PYTHONPATH": f"{self.folder / 'code'}{os.pathsep}{ROOT}"}
        command = [str(self.python), "-P", "-m", "niels_gpt", "train", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=env, stdout=pipe, stderr=pipe, text=True)

    def finish(self, *settings: str, code: str = "") -> str:
        """Carry out the run to its end, and return its output."""
        done = self.start(*settings, code=code)
        output, errors = done.communicate()
        assert done.returncode == 0, errors
        return output

    def read(self) -> tuple[dict[tuple[str, int], list[float]], dict[str, Any]]:
        """Return the numbers that the logger has for each name and step, and other facts."""
        environment = READERS.get(self.logger, (self.logger, self.logger))
        question = {"logger": self.logger, "where": str(self.folder)}
        rows, facts = ask(make_environment(*environment), "logger_probe", question)
        numbers: dict[tuple[str, int], list[float]] = {}
        for name, step, number in rows:
            numbers.setdefault((name, step), []).append(number)
        return numbers, facts

    def expected(self) -> dict[tuple[str, int], Any]:
        """Return the numbers in metrics.jsonl, as `read` does."""
        found = {}
        for path in (self.folder / "runs" / "watched").glob("*/metrics.jsonl"):
            for event in map(json.loads, path.read_text().splitlines()):
                for key in event.keys() - {"event", "step", "time"}:
                    number = pytest.approx([event[key]], rel=1e-6)
                    found[f"{path.parent.name}/{event['event']}/{key}", event["step"]] = number
        return found


@pytest.fixture(params=LOGGERS)
def watched(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(request.param, tmp_path, monkeypatch)


def test_after_kills_a_stop_and_a_resume_each_point_is_there_once_and_the_weights_are_the_same(
    watched: Watched,
) -> None:
    for phase, step, signum in (
        ("pretrain", 20, signal.SIGKILL), ("pretrain", 40, signal.SIGTERM), ("sft", 20, signal.SIGKILL),
    ):  # fmt: skip
        run = watched.start()
        path = watched.folder / "runs" / "watched" / phase / f"step_{step:07}.pt"
        wait_until(path.exists)
        run.send_signal(signum)
        run.communicate()
        assert run.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    output = watched.finish()
    assert "warning" not in output and watched.logger not in output
    numbers, facts = watched.read()
    assert numbers == watched.expected()
    config = {key: str(value) for key, value in facts["config"].items()}
    assert (config["pretrain.train.total_steps"], config["sft.phase"]) == ("60", "sft")
    if "images" in facts:
        assert {Path(name).stem for name in facts["images"]} == {"curves"} and len(facts["images"]) >= 2
    assert facts.get("name", "watched") == "watched" and facts.get("status", "FINISHED") == "FINISHED"
    steps = facts.get("steps", [])
    assert steps == sorted(set(steps)), "one axis for both phases"
    watched.finish("logger=[]", "name=alone")
    logged, alone = (final(watched.folder / "runs" / name / "sft") for name in ("watched", "alone"))
    assert same(logged, alone)


def test_a_logger_that_is_killed_before_its_note_never_has_a_point_twice(watched: Watched) -> None:
    """All but W&B get the points again; W&B would have them twice, so the kill has cost them."""
    assert f"logger {watched.logger} failed" in watched.finish("phase=pretrain", "train.total_steps=30", code=DIES)
    watched.finish("phase=pretrain")
    numbers, expected = watched.read()[0], watched.expected()
    assert numbers.items() <= expected.items() if watched.logger == "wandb" else numbers == expected
    assert ("pretrain/train/loss", 60) in numbers


def test_runs_side_by_side_make_one_database(watched: Watched) -> None:
    short = ("phase=pretrain", "train.total_steps=10", "train.ckpt_every=1")
    started = [watched.start(*short, f"name={name}") for name in ("one", "two", "three")]
    for output, errors in [run.communicate() for run in started]:
        assert "finished in" in output and "failed" not in output, errors
