"""With init_from, the shape of a model is that of the weights, unless the command line says otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Compose
from support.llama_folders import GROUPED, make_llama

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError, ConfigError
from train.config import compose_plan, load_plan
from train.config.schema import RunCfg

Load = Callable[..., list[RunCfg]]
TINY = compose_plan(["model=tiny"])[0].model


@pytest.fixture
def load(composed: Compose, tmp_path: Path) -> Load:
    """Load a plan whose run folder is tmp_path/own."""

    def load(*overrides: str) -> list[RunCfg]:
        words = [f"dir={tmp_path / 'own'}", *overrides]
        return load_plan(composed(*words), words)

    return load


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_llama(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("phase", ["pretrain", "sft", "pipeline"])
def test_the_shape_is_that_of_a_folder_with_the_V_of_its_tokenizer(load: Load, llama: Path, phase: str) -> None:
    expected = GROUPED.model_copy(update={"V": 305, "dropout": 0.1})
    assert {cfg.model for cfg in load(f"init_from={llama}", f"phase={phase}", "model.dropout=0.1")} == {expected}


@pytest.mark.parametrize("path", ["", "pretrain", "pretrain/best.pt", "pretrain/step_0000004.pt"])
@pytest.mark.parametrize("record", ["data.json", "result.json"])
def test_the_shape_is_that_of_a_run_however_it_is_named(
    load: Load, copied_run: Path, finished_run: Path, path: str, record: str
) -> None:
    """A run that was stopped has no result.json; an older one has no shape in data.json."""
    shutil.rmtree(copied_run / "sft")
    (copied_run / ("result.json" if record == "data.json" else "pretrain/data.json")).unlink()
    result = json.loads((finished_run / "result.json").read_text())["phases"][0]
    (cfg,) = load(f"init_from={copied_run / path}", "phase=sft")
    assert cfg.model == ModelCfg(**result["settings"]["model"]) != TINY


def test_what_the_command_line_sets_stays_and_an_option_of_an_experiment_gives_way(
    load: Load, llama: Path
) -> None:
    (cfg,) = load(f"init_from={llama}", "experiment=full_sft", "model.T=1024", "model.V=400")
    assert cfg.model == GROUPED.model_copy(update={"V": 400, "T": 1024, "dropout": cfg.model.dropout})
    first, second = load(f"init_from={llama}", "model.T=32", "sft.model.dropout=0.2")
    assert first.model.T == second.model.T == 32
    assert (first.model.dropout, second.model.dropout) == (0.0, 0.2)


def test_another_shape_than_that_of_the_weights_is_refused_at_once(load: Load, llama: Path) -> None:
    for word, wrong in {"model=small": "C=36, not 384", "model.H_kv=3": "H_kv=2, not 3"}.items():
        with pytest.raises(
            CheckpointError, match=f"llama and this run have different models:\nmodel.{wrong}"
        ) as caught:
            load(f"init_from={llama}", "phase=sft", word)
        assert caught.value.hint == f"leave out {word}: the shape follows the weights"


def test_a_run_that_has_begun_keeps_its_shape_when_the_weights_are_gone(
    load: Load, copied_run: Path, tmp_path: Path
) -> None:
    copied_run.rename(tmp_path / "own")
    for phase in ("pretrain", "sft"):
        (cfg,) = load("init_from=gone", f"phase={phase}")
        assert cfg.model == ModelCfg(**json.loads((tmp_path / "own" / phase / "data.json").read_text())["model"])
    (tmp_path / "own" / "sft" / "data.json").write_text("{")
    (tmp_path / "own" / "result.json").unlink()
    assert load("init_from=gone", "phase=sft")[0].model == TINY


def test_a_folder_has_nothing_to_resume_from(load: Load, llama: Path) -> None:
    with pytest.raises(ConfigError, match="has weights, but no optimizer state") as caught:
        load(f"resume={llama}", "phase=sft")
    assert caught.value.hint == f"start from its weights: init_from={llama}"
