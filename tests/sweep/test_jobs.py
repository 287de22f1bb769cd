"""All jobs of a sweep are known, named and checked before the first one starts."""

import shlex
from pathlib import Path

import pytest
from conftest import CONF, Compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from niels_gpt.errors import ConfigError
from train.artifacts.job_record import config_hash, write_job
from train.config import load_plan
from train.sweep.folders import MAX_NAME
from train.sweep.jobs import PlannedJob, begin_sweep, plan_jobs, require_distinct

pytestmark = pytest.mark.usefixtures("composed")
SWEEPS = sorted((CONF / "sweep").glob("*.yaml"))


def jobs(*overrides: str) -> list[PlannedJob]:
    """Return the jobs of `niels_gpt train -m OVERRIDES`."""
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)
    return plan_jobs(config, loader, begin_sweep(config, loader) or [])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_composes_into_jobs_that_can_be_carried_out(path: Path) -> None:
    planned = jobs(f"sweep={path.stem}")
    assert len(planned) > 3
    assert {job.folder.parent for job in planned} == {Path("runs") / path.stem}
    require_distinct(planned)


def test_a_sweep_over_files_takes_one_for_each_job() -> None:
    planned = jobs("phase=pretrain", "data=text", "data.files=a.md,[b.md,c.md]")
    assert [job.plan[0].data.files for job in planned] == [("a.md",), ("b.md", "c.md")]


@pytest.mark.parametrize("overrides", [["sweep=batch_split"], ["experiment=smoke_pipeline", "train.B=2,4"]])
def test_the_command_of_a_job_composes_into_its_settings_in_another_folder(
    overrides: list[str], composed: Compose
) -> None:
    for job in jobs(*overrides):
        words = shlex.split(job.command)
        assert words[:2] == ["niels_gpt", "train"]
        plan = load_plan(composed(*words[2:]))
        assert config_hash(plan) == config_hash(job.plan)
        assert Path(plan[0].dir) not in (job.folder, job.folder.parent)


def names(*overrides: str) -> list[str]:
    return [job.folder.name for job in jobs(*overrides)]


def test_a_folder_is_named_by_its_number_and_the_swept_settings() -> None:
    smoke = "experiment=smoke_pretrain"
    assert names(smoke, "train.B=4,8", "train.accum_steps=1") == ["01-B4", "02-B8"]
    assert names("train.base_lr=0.00123456,2e-5", "optim=adamw,muon")[::3] == [
        "01-base_lr0.00123-optim_adamw",
        "04-base_lr2e-05-optim_muon",
    ]
    assert names("sft.train.B=2,4", "train.B=2") == ["01-sft.B2", "02-sft.B4"]
    assert names("sweep=lr")[0] == "01-base_lr0.001"
    assert names("name=alone") == ["01"] and names("train.B=4", "name=alone") == ["01-B4"]


def test_names_of_folders_are_bounded_different_and_safe_on_a_command_line(composed: Compose) -> None:
    files = ",".join(f"some rather long/name $of a file {number}.txt" for number in range(9))
    asked = ["phase=pretrain", "data=text", f"data.files=['{files}','{files}; rm'],['{files}']", "train.B=1,2"]
    found = names(*asked)
    assert len(set(found)) == 4 and found == names(*asked)
    for name in found:
        assert len(name) <= MAX_NAME < 100 and shlex.quote(name) == name and not set("=,") & set(name)
        path = f"runs/x/{name}/pretrain/best.pt"
        assert load_plan(composed("phase=sft", f"init_from={path}"))[0].init_from == path


def test_a_sweep_that_is_extended_keeps_its_folders_and_finds_those_of_any_name(tmp_path: Path) -> None:
    sweep = f"dir={tmp_path}"
    for job in jobs(sweep, "train.B=4,8"):
        write_job(job.folder, job.read_record())
    assert names(sweep, "train.B=2,4,8,16") == ["03-B2", "01-B4", "02-B8", "04-B16"]
    (tmp_path / "02-B8").rename(tmp_path / "train.B=8")
    assert names(sweep, "train.log_every=7", "train.B=4,8") == ["01-B4", "train.B=8"]


def test_all_that_is_wrong_is_said_of_each_job_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        jobs("experiment=smoke_pretrain", "train.B=0,2", "train.betas=[0.9,0.95],[2,2]")
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("train.B=0: ") and lines[0].count("train.betas=") == 2, "in two jobs"
    assert "betas=[2.0, 2.0]" in lines[1] and lines[1].endswith("(in train.B=2,train.betas=[2,2])")
    assert "3 of 4 jobs" in refused.value.hint


def test_a_combination_asked_for_twice_a_range_and_too_many_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="identical jobs: .*train.B=2 and .*train.B=2"):
        require_distinct(jobs("experiment=smoke_pretrain", "train.B=2,2"))
    pair = "train.B=2,train.log_every=1 and train.B=2,train.log_every=2"
    with pytest.raises(ConfigError, match=f"identical jobs: {pair}") as told:
        require_distinct(jobs("experiment=smoke_pretrain", "train.B=2,4", "train.log_every=1,2"))
    assert "settings that change the result" in told.value.hint
    with pytest.raises(ConfigError, match="identical jobs: train.B=2 and train.B=4"):
        require_distinct(jobs("experiment=smoke_pretrain", "batch=auto", "global_B=8", "train.B=2,4"))
    with pytest.raises(ConfigError, match="is not directly in the sweep's folder"):
        jobs("experiment=smoke_pretrain", "name=one,two")
    with pytest.raises(HydraException, match="does not support sweep type : INTERVAL_SWEEP"):
        jobs("experiment=smoke_pretrain", "train.base_lr=interval(1e-4,1e-2)")
    for many, said in ((1, "no jobs"), (1000000000, "more than 1000 jobs")):
        with pytest.raises(ConfigError, match=f"this sweep has {said}"):
            jobs("experiment=smoke_pretrain", "train.B=2,4", f"train.seed=range(1,{many})")
