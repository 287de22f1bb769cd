"""Points reach a logger once a checkpoint covers them, each once; a logger that fails is left behind."""

import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import Plan, Run, metrics, stopped_after
from support.fake_loggers import Told, install_fakes, set_behaviour
from support.processes import KILLED, start_run

from niels_gpt.errors import ConfigError, Interrupted
from train.artifacts.job_record import JOB
from train.loop.loggers import forwarding
from train.loop.steps import optimizer_step

EVERY = ("train.log_every=1", "train.ckpt_every=4", "train.eval_every=8", "train.total_steps=12")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the fakes have been told, which work."""
    return install_fakes(tmp_path, monkeypatch)


def points(told: Told) -> list[tuple[int, dict[str, float]]]:
    """Return the points that a logger was told of, by their steps."""
    return [pair for call in told() for pair in zip(call["steps"], call["points"], strict=True)]


def logged(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the points of a phase that metrics.jsonl has."""
    events = metrics(folder)
    names = {"event", "step"}
    return [
        (e["step"], {f"{folder.name}/{e['event']}/{key}": value for key, value in e.items() if key not in names})
        for e in events
    ]


def without_times(pairs: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    timed = ("tokens_per_second", "memory", "pretrain/step", "sft/step")
    return [(step, {k: v for k, v in numbers.items() if not k.endswith(timed)}) for step, numbers in pairs]


def kill_in_step_7() -> None:
    def step(state: Any, *rest: Any) -> Any:
        if state.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return optimizer_step(state, *rest)

    mock.patch("train.loop.steps.optimizer_step", step).start()


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["trackio", "wandb"])
def test_a_run_that_is_killed_and_resumed_logs_each_point_once(
    plan: Plan, run_folder: Run, told: Told, logger: str
) -> None:
    assert start_run(plan(*EVERY, f"logger={logger}"), before=kill_in_step_7).end().returncode == KILLED
    folder = run_folder(*EVERY, f"logger=[{logger}]") / "pretrain"
    assert [step for step, _ in points(told)] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]
    assert without_times(points(told)) == logged(folder)
    assert len({call["id"] for call in told()}) == 1
    run_folder(*EVERY, "train.total_steps=13", f"logger=[{logger}]")
    assert [step for step, _ in points(told)][14:] == [13, 13]


def test_points_wait_for_their_checkpoint(run_folder: Run, told: Told) -> None:
    with mock.patch("train.loop.steps.save_step", side_effect=RuntimeError), pytest.raises(RuntimeError):
        run_folder(*EVERY, "logger=trackio")
    assert told() == []


@pytest.mark.slow
@pytest.mark.parametrize(("logger", "again"), [("trackio", [1, 2, 3, 4]), ("wandb", [])])
def test_a_logger_that_dies_before_its_note_repeats_or_leaves_out_points_as_it_is_safe(
    run_folder: Run, told: Told, tmp_path: Path, logger: str, again: list[int]
) -> None:
    """Trackio ignores a second row of the same key; W&B would show it."""
    set_behaviour(tmp_path, "dies")
    with stopped_after(4), pytest.raises(Interrupted):
        run_folder(*EVERY, f"logger={logger}")
    first = told()
    set_behaviour(tmp_path, "works")
    run_folder(*EVERY, f"logger={logger}")
    repeated = [step for step, _ in points(told)][len(first[0]["steps"]) :]
    assert repeated == [*again, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]
    if again:
        assert told()[1]["keys"][:4] == first[0]["keys"]


@pytest.mark.parametrize("logger", ["trackio", "wandb"])
def test_a_logger_learns_of_the_run_its_phases_its_settings_and_its_sweep(
    run_folder: Run, told: Told, tmp_path: Path, logger: str
) -> None:
    (tmp_path / "sweep" / "1-lr").mkdir(parents=True)
    (tmp_path / "sweep" / "1-lr" / JOB).write_text("{}")
    folder = run_folder(f"logger={logger}", experiment="smoke_pipeline", name="sweep/1-lr")
    assert {(call["name"], call["group"]) for call in told()} == {("1-lr", "sweep")}
    assert {call.get("mode", "offline") for call in told()} == {"offline"}
    config = told()[0]["config"] | told()[-1]["config"]
    assert (config["pretrain.train.total_steps"], config["sft.data.kind"]) == (4, "synthetic")
    assert len(config["commit"]) == 40
    expected = logged(folder / "pretrain") + logged(folder / "sft")
    assert [point for _, point in without_times(points(told))] == [point for _, point in expected]
    steps = [step for step, _ in points(told)]
    if logger == "wandb":
        assert steps == sorted(steps), "the second phase goes on where the first ended"


def test_a_run_that_starts_to_log_late_logs_what_it_has(run_folder: Run, told: Told) -> None:
    with stopped_after(5), pytest.raises(Interrupted):
        run_folder(*EVERY)
    folder = run_folder(*EVERY, "logger=trackio") / "pretrain"
    assert without_times(points(told)) == logged(folder)


def test_a_package_that_is_missing_is_refused_with_its_extra(plan: Plan) -> None:
    with pytest.raises(ConfigError, match="logger: mlflow is not installed") as caught:
        plan("logger=mlflow")
    assert caught.value.hint == "pip install 'niels_gpt[mlflow]'"
    with pytest.raises(ConfigError, match=r"logger\.0=excel: must be trackio, tensorboard, wandb or mlflow"):
        plan("logger=[excel]")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raises", "RuntimeError: no such table: runs"),
        pytest.param("full", "OSError: [Errno 28] No space left on device", marks=pytest.mark.slow),
        pytest.param("blocks", "no answer for 3 s", marks=pytest.mark.slow),
    ],
)
def test_a_logger_that_fails_is_warned_of_once(
    run_folder: Run, told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, how: str, reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(forwarding, "CALL_SECONDS", 3)
    set_behaviour(tmp_path, how)
    run_folder(*EVERY, "logger=trackio")
    warned = [line for line in caplog.messages if "logger trackio" in line]
    assert warned == [f"warning: logger trackio failed ({reason}); continuing without it"]
    assert told() == []


@pytest.mark.slow
def test_the_end_of_a_run_waits_only_so_long(
    run_folder: Run, told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "END_SECONDS", 2.0)
    set_behaviour(tmp_path, "blocks")
    run_folder(*EVERY, "logger=trackio")
    assert (
        "warning: logger trackio failed (not done 2 s after the phase); continuing without it" in caplog.messages
    )
