"""Older JSON configs load, with the older program's recipe; no key is dropped silently."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import warm
from conftest import CONF, ROOT
from hydra import compose, initialize_config_dir

from niels_gpt.errors import ConfigError
from train.config import load_plan
from train.config.hydra_schema import register
from train.config.legacy import describe_use, experiment_yaml, plan_from_json
from train.config.schema import RunCfg

PRETRAIN = {
    "model_cfg": {"V": 4096, "T": 64, "C": 96, "L": 3, "H": 3, "d_ff": 256, "dropout": 0.1},
    "train_cfg": {"seed": 7, "B": 8, "total_steps": 120, "eval_every": 40, "eval_steps": 4, "base_lr": 0.0006},
    "sources": {"wiki": 0.8, "notes": 0.2},
    "val_source": "wiki",
}
SFT = {
    "model_cfg": {"V": 4096, "T": 64, "C": 96, "L": 3, "H": 3, "d_ff": 256},
    "train_cfg": {"B": 4, "total_steps": 60, "eval_batches": 6, "base_lr": 0.0001, "warmup_steps": 6},
    "sft_sources": {"dialogues": 1.0},
}
FLAT = {
    "model": {"V": 256, "T": 128, "C": 128, "L": 2, "H": 4, "d_ff": 256, "dropout": 0.1, "rope_theta": 10000.0},
    "train": {"seed": 42, "B": 16, "total_steps": 500, "eval_steps": 10, "p_train": {"wiki": 0.9, "notes": 0.1}},
}
PIPELINE = {"pretrain_config_path": "pretrain.json", "sft_config_path": "sft.json"}
SHAPES: dict[str, Any] = {"flat": FLAT, "pretrain": PRETRAIN, "sft": SFT, "pipeline": PIPELINE}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in SHAPES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_loads_with_the_three_defaults(folder: Path, shape: str) -> None:
    """Acceptance 1."""
    plan = plan_from_json(folder / f"{shape}.json")
    phases = {"pipeline": ["pretrain", "sft"], "sft": ["sft"]}.get(shape, ["pretrain"])
    assert [cfg.phase for cfg in plan] == phases
    for cfg in plan:
        train = cfg.train
        assert (train.amp, train.amp_dtype, train.activation_checkpointing) == (True, "fp16", False)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_recipe_of_the_older_program_is_kept_and_written_out(folder: Path, shape: str) -> None:
    for cfg, old in zip(composed(folder, shape), plan_from_json(folder / f"{shape}.json"), strict=True):
        assert (cfg.train.optim, cfg.train.schedule, cfg.train.betas) == ("adamw", "cosine", (0.9, 0.95))
        assert cfg.model.tie_embeddings
        assert (
            cfg.train.base_lr
            == old.train.base_lr
            == {"pretrain": 6e-4, "sft": 1e-4, "flat": 3e-4}["flat" if shape == "flat" else cfg.phase]
        )
    assert "base_lr: " in experiment_yaml(folder / f"{shape}.json")


def test_every_key_is_mapped(folder: Path) -> None:
    first, second = plan_from_json(folder / "pipeline.json")
    assert (first.train.seed, first.train.B, first.train.base_lr) == (7, 8, 0.0006)
    assert first.train.eval_sequences == 4 * 8 and second.train.eval_sequences == 6 * 4
    assert [(s.label, s.weight, s.kind) for s in first.data.sources] == [
        ("wiki", 0.8, "text"),
        ("notes", 0.2, "text"),
    ]
    assert first.data.val_source == "wiki"
    assert [(s.label, s.kind) for s in second.data.sources] == [("dialogues", "jsonl")]
    assert (first.model.dropout, second.model.dropout) == (0.1, 0.0)
    flat = plan_from_json(folder / "flat.json")[0]
    assert [(s.label, s.weight) for s in flat.data.sources] == [("wiki", 0.9), ("notes", 0.1)]
    assert (flat.data.tokenizer, flat.model.V, flat.train.eval_sequences) == ("bytes", 256, 160)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "old.json:1:2: not JSON"),
        ("[1]", "holds no JSON object"),
        (json.dumps(FLAT | {"optimizer": {}}), "unknown optimizer"),
        (json.dumps(FLAT | {"train": {"lr": 1}}), "unknown lr"),
        (json.dumps(FLAT | {"train": {"B": 0}}), "train.B=0: "),
        (json.dumps(PIPELINE | {"seed": 1}), "unknown seed"),
        (json.dumps({"sft_config_path": "sft.json"}), "pretrain_config_path must be the path"),
        (json.dumps(FLAT | {"model_cfg": {}}), "model and model_cfg mean one thing"),
        (json.dumps(FLAT | {"sources": {"a": 1}}), "sources and p_train mean one thing"),
        (json.dumps(FLAT | {"train": {"eval_steps": 1, "eval_batches": 1}}), "mean one thing"),
        (json.dumps(FLAT | {"train": {"eval_steps": True}}), "eval_steps=True and B=4 must be whole numbers"),
        (json.dumps(FLAT | {"train": {"eval_steps": 4, "B": True}}), "B=True must be whole numbers"),
        (json.dumps(PRETRAIN | {"sources": {}}), "old.json: sources names no source"),
        (json.dumps(FLAT | {"train": {"p_train": {}}}), "old.json: p_train names no source"),
        (json.dumps(SFT | {"sft_sources": {}}), "old.json: sft_sources names no source"),
        (json.dumps(FLAT | {"model": 3}), "model is not a JSON object"),
        (json.dumps(PRETRAIN | {"sources": ["a"]}), "sources is not a JSON object"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        plan_from_json(path)
    assert said in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json: cannot be read"):
        plan_from_json(tmp_path / "none.json")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_experiment_composes_to_the_same_plan(folder: Path, shape: str) -> None:
    assert composed(folder, shape) == plan_from_json(folder / f"{shape}.json")


@pytest.mark.parametrize(
    "train",
    [
        {"amp": False, "amp_dtype": "bf16", "compile": True},
        {"loss_scaling": True, "activation_checkpointing": True},
        {"optim": "muon", "betas": [0.5, 0.9]},
        {"schedule": "linear", "amp_dtype": "bf16", "loss_scaling": True, "base_lr": 0.001},
    ],
)
def test_what_no_option_says_stays_in_the_experiment(folder: Path, train: dict[str, Any]) -> None:
    for name in ("pretrain", "sft", "flat"):
        old: dict[str, Any] = SHAPES[name]
        changed = old | {key: value | train for key, value in old.items() if key.startswith("train")}
        (folder / f"{name}.json").write_text(json.dumps(changed))
        assert composed(folder, name) == plan_from_json(folder / f"{name}.json")
    (folder / "sft.json").write_text(json.dumps(SFT))
    assert composed(folder, "pipeline") == plan_from_json(folder / "pipeline.json")


@pytest.mark.parametrize("shape", SHAPES)
def test_other_options_can_be_chosen_with_the_experiment(folder: Path, shape: str) -> None:
    plan = composed(folder, shape, "precision=off", "memory=ckpt", "optim=muon", "compile=on", "model=small")
    for cfg, old in zip(plan, plan_from_json(folder / f"{shape}.json"), strict=True):
        train = cfg.train
        assert (train.amp, train.activation_checkpointing, train.compile) == (False, True, True)
        assert (train.optim, train.schedule, train.betas) == ("muon", "linear", (0.8, 0.98))
        assert (train.base_lr, cfg.model, cfg.data) == (old.train.base_lr, old.model, old.data)


def composed(folder: Path, shape: str, *overrides: str) -> list[RunCfg]:
    """Return what Hydra makes of the experiment."""
    conf = folder / "conf"
    shutil.copytree(CONF, conf, dirs_exist_ok=True)
    (conf / "experiment" / f"{shape}.yaml").write_text(experiment_yaml(folder / f"{shape}.json"))
    register()
    with initialize_config_dir(str(conf), version_base="1.3"):
        return load_plan(compose("config", overrides=[f"experiment={shape}", *overrides]))


def test_the_script_writes_an_experiment_once(folder: Path) -> None:
    done = warm.cli("flat.json", "--to", ".", cwd=folder, script="import_json")
    assert done.returncode == 0 and done.stdout.startswith("wrote flat.yaml; to run it, move it to "), done.stderr
    before = (folder / "flat.yaml").read_bytes()
    again = warm.cli("flat.json", "--to", ".", cwd=folder, script="import_json")
    assert again.returncode == 2 and "already exists" in again.stderr
    assert (folder / "flat.yaml").read_bytes() == before


def test_the_describe_use_it_that_is_printed_finds_the_experiment(folder: Path) -> None:
    (folder / "own confs" / "experiment").mkdir(parents=True)
    done = warm.cli("flat.json", "--to", "own confs/experiment", cwd=folder, script="import_json")
    said = done.stdout.splitlines()[0].partition("run it with: python scripts/train.py ")[2]
    shown = warm.cli(*shlex.split(said), "--cfg", "job", cwd=folder)
    assert shown.returncode == 0 and shown.stdout.startswith("name: flat\n"), (said, shown.stderr)
    assert describe_use(CONF / "experiment" / "old.yaml") == "run it with: python scripts/train.py experiment=old"


def test_a_folder_that_is_not_there_is_refused_with_the_way_out(folder: Path) -> None:
    done = warm.cli("flat.json", "--to", "none", cwd=folder, script="import_json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --to none is not a folder\nhint: make it, or leave --to out\n"


def test_a_config_without_sources_says_what_it_reads_now(folder: Path) -> None:
    (folder / "bare.json").write_text(json.dumps({"model": FLAT["model"]}))
    done = warm.cli("bare.json", "--to", ".", cwd=folder, script="import_json")
    assert done.returncode == 0 and "pretrain: no sources are named; it now reads " in done.stdout, done.stderr


@pytest.mark.skipif(
    not (ROOT.parent / "shared" / "legacy").exists(), reason="the collection of older configs is not here"
)
def test_the_collected_older_configs_load() -> None:
    for path in sorted((ROOT.parent / "shared" / "legacy").glob("*.json")):
        assert plan_from_json(path)
