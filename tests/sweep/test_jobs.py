"""All jobs of a sweep are known, named and checked before the first one starts."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CONF, Compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from niels_gpt.errors import ConfigError
from train.artifacts.job_record import config_hash
from train.config import load_plan
from train.config.hydra_schema import MAX_NAME, register
from train.sweep.jobs import PLANNED, PlannedJob, list_overrides, plan_jobs, require_distinct

SWEEPS = sorted((CONF / "sweep").glob("*.yaml"))


@pytest.fixture
def loader() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def jobs(*overrides: str) -> list[PlannedJob]:
    """Return the jobs of `python scripts/train.py -m OVERRIDES`."""
    PLANNED.clear()
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)
    batch = list_overrides(config, loader)
    assert batch is not None
    return plan_jobs(config, loader, batch)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("loader")
def test_every_shipped_sweep_composes_into_jobs_that_can_be_carried_out(path: Path) -> None:
    planned = jobs(f"sweep={path.stem}")
    assert len(planned) > 3
    assert {job.folder.parent for job in planned} == {Path("runs") / path.stem}
    assert len({config_hash(job.plan) for job in planned}) == len(planned)


@pytest.mark.usefixtures("loader")
def test_a_sweep_over_files_takes_one_for_each_job() -> None:
    planned = jobs("phase=pretrain", "data=text", "data.files=a.md,[b.md,c.md]")
    assert [job.plan[0].data.files for job in planned] == [("a.md",), ("b.md", "c.md")]


@pytest.mark.parametrize("overrides", [["sweep=batch_split"], ["experiment=smoke_pipeline", "train.B=2,4"]])
def test_the_command_of_a_job_composes_into_its_settings_in_another_folder(
    overrides: list[str], composed: Compose
) -> None:
    for job in jobs(*overrides):
        words = shlex.split(job.command)
        assert words[:2] == ["python", "scripts/train.py"]
        plan = load_plan(composed(*words[2:]))
        assert config_hash(plan) == config_hash(job.plan)
        assert Path(plan[0].dir) not in (job.folder, job.folder.parent)


@pytest.mark.usefixtures("loader")
def test_names_of_folders_are_stable_bounded_and_different() -> None:
    files = ",".join(f"some_rather_long_name_of_a_file_{number}.txt" for number in range(9))
    asked = ["phase=pretrain", "data=text", f"data.files=[{files}]", "train.B=1,2,3"]
    names = [job.folder.name for job in jobs(*asked)]
    assert names == [job.folder.name for job in jobs(*asked)]
    assert len(set(names)) == 3
    assert all(len(name) <= MAX_NAME and "/" not in name for name in names)
    assert [job.folder for job in jobs("name=alone")] == [Path("runs/alone/defaults")]


@pytest.mark.usefixtures("loader")
def test_all_that_is_wrong_is_said_of_each_job_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        jobs("experiment=smoke_pretrain", "train.B=0,2", "train.betas=[0.9,0.95],[2,2]")
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("train.B=0: ") and lines[0].count("train.betas=") == 2, "in two jobs"
    assert "betas=[2.0, 2.0]" in lines[1] and lines[1].endswith("(in train.B=2,train.betas=[2,2])")
    assert "3 of 4 jobs" in refused.value.hint


@pytest.mark.usefixtures("loader")
def test_a_combination_asked_for_twice_a_range_and_too_many_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="identical jobs: .*train.B=2 and .*train.B=2"):
        require_distinct(jobs("experiment=smoke_pretrain", "train.B=2,2"))
    for setting in ("train.log_every=1,2", "resume=auto,never"):
        key, first, second = re.split("[=,]", setting)
        pair = " and ".join(f"train.B=2,{key}={value}" for value in (first, second))
        with pytest.raises(ConfigError, match=f"identical jobs: {pair}") as told:
            require_distinct(jobs("experiment=smoke_pretrain", "train.B=2,4", setting))
        assert "settings that change the result" in told.value.hint
    with pytest.raises(ConfigError, match="identical jobs: train.B=2 and train.B=4"):
        require_distinct(jobs("experiment=smoke_pretrain", "batch=auto", "global_B=8", "train.B=2,4"))
    with pytest.raises(ConfigError, match="is not directly in the sweep's folder"):
        jobs("experiment=smoke_pretrain", "name=one,two")
    with pytest.raises(ConfigError, match="is a range"):
        jobs("experiment=smoke_pretrain", "train.base_lr=interval(1e-4,1e-2)")
    for many, said in ((1, "no jobs"), (1000000000, "more than 1000 jobs")):
        with pytest.raises(ConfigError, match=f"this sweep has {said}"):
            jobs("experiment=smoke_pretrain", "train.B=2,4", f"train.seed=range(1,{many})")
