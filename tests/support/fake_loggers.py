"""Packages trackio and wandb for tests: they keep what they are told in told.jsonl, or fail as they are asked to.

Both are imported by the process of a logger, not by that of the run or of the tests.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

COMMON = """
import json, os, time
from pathlib import Path
def tell(**facts):
    how = Path({how!r}).read_text()
    if how == "raises":
        raise RuntimeError("no such table: runs")
    if how == "blocks":
        time.sleep(300)
    if how == "full":
        with open("/dev/full", "w") as disk:
            disk.write("point")
    with Path({told!r}).open("a") as file:
        file.write(json.dumps(facts) + "\\n")
    if how == "dies":
        os.abort()
"""
TRACKIO = """
class SQLiteStorage:
    def get_run_config(project, name, run_id):
        told = Path({told!r})
        return json.loads(told.read_text().splitlines()[-1])["config"] if told.exists() else None
    def bulk_log(project, run, metrics, steps, timestamps, config, log_ids, run_id):
        tell(name=run, id=run_id, group=config["_Group"], steps=steps, points=metrics, keys=log_ids, config=config)
"""
WANDB = """
class Settings(dict): pass
class Run:
    summary = {{}}
    def define_metric(self, *_, **__): pass
    def log(self, numbers, step, commit):
        tell(steps=[step], points=[numbers], **self.facts)
    def finish(self, code): pass
def init(**facts):
    run = Run()
    run.facts = {{key: facts[key] for key in ("id", "name", "group", "mode", "config")}}
    return run
"""
Told = Callable[[], list[dict[str, Any]]]


def install_fakes(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str = "works") -> Told:
    """Install the packages in a folder; return a function that returns what they have been told."""
    set_behaviour(folder, how)
    told = folder / "told.jsonl"
    for path, text in (
        ("trackio/__init__.py", ""),
        ("trackio/sqlite_storage.py", TRACKIO),
        ("wandb/__init__.py", WANDB),
    ):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text((COMMON + text).format(how=str(folder / "how"), told=str(told)))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests"))))
    return lambda: [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def set_behaviour(folder: Path, how: str) -> None:
    """Let the packages work, or fail: raises, blocks, full, dies (after it has kept a point)."""
    (folder / "how").write_text(how)
