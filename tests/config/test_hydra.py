"""Hydra works as it documents: the environment, own callbacks, logging configs, plugins and config folders."""

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Compose, cli
from hydra.experimental.callback import Callback
from support import processes

from train.config import load_plan

EXPERIMENT = """# @package _global_
defaults: [smoke_pretrain]
name: ${oc.env:OF_THE_SHELL}
train: {total_steps: 2}
data: {size: 200}
model: {V: 300}
hydra:
  callbacks:
    own: {_target_: config.test_hydra.Remembers, path: %s/called}
"""
LOGGING = """version: 1
handlers: {own: {class: logging.FileHandler, filename: %s}}
root: {level: INFO, handlers: [own]}
disable_existing_loggers: false
"""
PLUGIN = """from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

class Theirs(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("theirs", "file://%s")
"""


class Remembers(Callback):
    """A user's own callback: it notes down what Hydra tells it."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        self.path.write_text(f"{config.name}: {job_return.status.name}")


def test_a_setting_may_come_from_the_environment(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_SHELL", "/scratch/me")
    cfg = load_plan(composed("data.cache_dir=${oc.env:OF_THE_SHELL}/cache", "name=${oc.env:NOT_SET,other}"))[0]
    assert (cfg.data.cache_dir, cfg.name) == ("/scratch/me/cache", "other")


def test_a_config_folder_brings_experiments_callbacks_and_logging(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    for group, text in (
        ("experiment", EXPERIMENT % tmp_path),
        ("hydra/job_logging", LOGGING % (tmp_path / "job.log")),
        ("hydra/hydra_logging", LOGGING % (tmp_path / "sweep.log")),
    ):
        (theirs / group).mkdir(parents=True)
        (theirs / group / "theirs.yaml").write_text(text)
    logging = ["hydra/job_logging=theirs", "hydra/hydra_logging=theirs"]
    words = [f"--config-dir={theirs}", "-m", "experiment=theirs", *logging]
    done = processes.cli(
        *words, cwd=tmp_path, env=os.environ | {"OF_THE_SHELL": "named", "PYTHONPATH": str(ROOT / "tests")}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text() == "named: COMPLETED"
    assert "job 1 of 1" in (tmp_path / "sweep.log").read_text()
    assert "pretrain: device=" in (tmp_path / "job.log").read_text()
    assert (tmp_path / "runs" / "named" / "sweep.html").exists()


def test_a_plugin_of_hydra_is_found_and_used(tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins" / "theirs").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "theirs" / "__init__.py").write_text(PLUGIN % tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "theirs.yaml").write_text("defaults: [tiny]\nL: 3\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = cli("--cfg", "job", "--package", "model", "model=theirs", cwd=tmp_path, env=env)
    assert done.returncode == 0 and "\nL: 3\n" in done.stdout, done.stderr
