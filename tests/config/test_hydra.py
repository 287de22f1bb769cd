"""Hydra works as it documents: the environment, own callbacks, logging configs, plugins and config folders."""

import os
from pathlib import Path
from typing import Any

from conftest import ROOT, cli
from hydra.experimental.callback import Callback

from niels_gpt.weights.checkpoint import read_checkpoint

EXPERIMENT = """# @package _global_
defaults: [smoke_pretrain, override /model: theirs]
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


def test_a_plugin_of_hydra_brings_models_experiments_callbacks_and_logging(tmp_path: Path) -> None:
    for name, text in (
        ("model/theirs.yaml", "defaults: [tiny]\nrope_theta: 500\n"),
        ("experiment/theirs.yaml", EXPERIMENT % tmp_path),
        ("hydra/job_logging/theirs.yaml", LOGGING % (tmp_path / "job.log")),
        ("hydra/hydra_logging/theirs.yaml", LOGGING % (tmp_path / "sweep.log")),
        ("hydra_plugins/theirs/__init__.py", PLUGIN % tmp_path),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    env = os.environ | {"OF_THE_SHELL": "named", "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{tmp_path}"}
    logging = ["hydra/job_logging=theirs", "hydra/hydra_logging=theirs"]
    done = cli("-m", "experiment=theirs", *logging, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text() == "named: COMPLETED"
    assert "job 1 of 1" in (tmp_path / "sweep.log").read_text()
    assert "pretrain: device=" in (tmp_path / "job.log").read_text()
    assert (tmp_path / "runs" / "named" / "sweep.html").exists()
    (job,) = tmp_path.glob("runs/named/*/pretrain/latest.pt")
    assert read_checkpoint(job)["model_cfg"]["rope_theta"] == 500
