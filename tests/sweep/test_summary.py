"""A sweep ends with its best result and commands to paste."""

import logging
import shlex
from pathlib import Path

import pytest
from conftest import Compose
from support.made_runs import made_run

from train.config import load_plan
from train.report.write import rewrite_report
from train.sweep.summary import log_summary


@pytest.mark.parametrize("name", ["01-B4", "train.B=4,train.seed=1"])
def test_the_commands_of_a_summary_can_be_pasted_whatever_the_folder(
    name: str, tmp_path: Path, composed: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    job = {"command": "niels_gpt train phase=pretrain train.total_steps=4 train.B=4"}
    folder = made_run(tmp_path / "my sweep" / name, job=job, total_steps=4)
    with caplog.at_level(logging.INFO, "niels_gpt"):
        log_summary(folder.parent, rewrite_report(folder.parent, None), 249, None)
    end, best, talk, train_on, *_ = caplog.messages
    assert end == "sweep ended after 4 min 9 s: 1 of 1 jobs finished" and best.endswith(str(folder))
    assert shlex.split(talk.partition("sample ")[2])[0] == str(folder)
    plan = load_plan(composed(*shlex.split(train_on.partition("niels_gpt train ")[2])))
    assert (plan[0].resume, plan[0].train.total_steps) == (f"{folder}/pretrain/latest.pt", 8)
