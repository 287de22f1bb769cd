"""Older JSON configs load, with the older program's recipe; no key is dropped silently."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, composing
from support import processes

from niels_gpt.errors import ConfigError
from train.config import load_plan
from train.config.legacy import format_experiment, plan_from_json
from train.config.schema import RunCfg

COLLECTED = ROOT.parent / "shared" / "legacy"
PRETRAIN = {
    "model_cfg": {"V": 4096, "T": 64, "C": 96, "L": 3, "H": 3, "d_ff": 256, "dropout": 0.1},
    "train_cfg": {"seed": 7, "B": 8, "total_steps": 300, "eval_every": 40, "eval_steps": 4, "base_lr": 0.0006},
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
NESTED = {
    "model": {"V": 4096},
    "training": {"sft": {"micro_B": 4, "total_steps": 90, "amp": False, "amp_dtype": "fp32"}},
    "data": {"mix_sft": {"dolly15k": 0.5, "oasst1": 0.5}},
}
PIPELINE = {"pretrain_config_path": "pretrain.json", "sft_config_path": "sft.json"}
SHAPES: dict[str, Any] = {
    "flat": FLAT,
    "pretrain": PRETRAIN,
    "sft": SFT,
    "pipeline": PIPELINE,
    "nested": NESTED,
    "bare": {"model": {}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in SHAPES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_keys_that_a_config_lacks_have_the_older_programs_defaults(folder: Path) -> None:
    (bare,) = plan_from_json(folder / "bare.json")
    assert (bare.phase, bare.model.V, bare.model.C, bare.model.dropout) == ("pretrain", 256, 256, 0.1)
    assert bare.model.tie_embeddings and bare.data.tokenizer == "bytes"
    assert [(s.name, s.weight) for s in bare.data.sources] == [("wiki", 0.72), ("roam", 0.18), ("primer", 0.1)]
    train = bare.train
    assert (train.seed, train.B, train.accum_steps, train.total_steps, train.warmup) == (42, 16, 1, 20_000, 200)
    assert (train.optim, train.schedule, train.betas) == ("adamw", "cosine", (0.9, 0.95))
    assert (train.base_lr, train.min_lr, train.eval_sequences) == (3e-4, 3e-5, 50 * 16)
    assert (train.amp, train.amp_dtype, train.activation_checkpointing) == (True, "fp16", False)


def test_a_pipeline_names_its_configs_from_the_current_folder_or_from_its_own_or_one_above(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older program took the paths from the folder it was started in; its SFT had the model of pretraining."""
    deep, here = folder / "deep", folder / "here"
    deep.mkdir()
    here.mkdir()
    (deep / "pipeline.json").write_text(json.dumps(PIPELINE | {"sft_config_path": "nested.json"}))
    plan = plan_from_json(deep / "pipeline.json")
    assert [(cfg.phase, cfg.model.T, cfg.train.seed) for cfg in plan] == [("pretrain", 64, 7), ("sft", 64, 42)]
    for place, seed in ((deep, 1), (here, 2)):  # each goes before the places so far
        (place / "pretrain.json").write_text(json.dumps(PRETRAIN | {"train_cfg": {"seed": seed}}))
        monkeypatch.chdir(here)
        assert plan_from_json(deep / "pipeline.json")[0].train.seed == seed


def test_an_empty_config_in_a_pipeline_is_the_older_programs_sft(folder: Path) -> None:
    (folder / "sft.json").write_text("{}")
    plan = plan_from_json(folder / "pipeline.json")
    assert [(cfg.phase, cfg.model.T, cfg.train.B) for cfg in plan] == [("pretrain", 64, 8), ("sft", 64, 16)]


def test_both_phases_may_be_in_one_file(folder: Path) -> None:
    training = {"pretrain": {"micro_B": 8}, "sft": {"total_steps": 90}}
    both = {
        "model": {"V": 2048},
        "training": training,
        "data": {"mix_pretrain": {"notes": 1}, "mix_sft": {"talk": 1}},
    }
    (folder / "both.json").write_text(json.dumps(both))
    plan = compose_experiment(folder, "both")
    assert plan == plan_from_json(folder / "both.json")
    assert [(cfg.phase, cfg.train.B, cfg.train.total_steps) for cfg in plan] == [
        ("pretrain", 8, 20_000),
        ("sft", 16, 90),
    ]
    assert [source.label for cfg in plan for source in cfg.data.sources] == ["notes", "talk"]


def test_autocast_to_fp32_is_none(folder: Path) -> None:
    (folder / "flat.json").write_text(json.dumps({"train": {"amp_dtype": "fp32"}}))
    assert plan_from_json(folder / "flat.json")[0].train.amp is False


@pytest.mark.parametrize(
    ("name", "option", "phase"),
    [
        ("wiki", "wikitext103", "pretrain"),
        ("dolly", "dolly", "sft"),
        ("dolly15k", "dolly", "sft"),
        ("oasst1", "oasst1", "sft"),
    ],
)
def test_a_public_dataset_is_read_as_the_preset_of_today(folder: Path, name: str, option: str, phase: str) -> None:
    key = {"pretrain": "mix_pretrain", "sft": "mix_sft"}[phase]
    (folder / "public.json").write_text(json.dumps({"data": {key: {name: 0.5, "own": 0.5}}}))
    with composing() as compose:
        (preset,) = load_plan(compose(f"phase={phase}", f"data={option}"))[0].data.mixture()
    ((run,), text) = compose_experiment(folder, "public"), format_experiment(folder / "public.json")
    assert run.data.mixture()[0] == preset.model_copy(update={"name": name, "weight": 0.5})
    assert (
        f"# source {name}: from the Hugging Face hub, as data={option}; needs pip install 'niels_gpt[hf]'\n"
        in text
    )


def test_every_key_is_mapped(folder: Path) -> None:
    first, second = plan_from_json(folder / "pipeline.json")
    assert (first.train.seed, first.train.B, first.train.base_lr) == (7, 8, 0.0006)
    assert first.train.eval_sequences == 4 * 8 and second.train.eval_sequences == 6 * 4
    assert [(s.label, s.weight) for s in first.data.sources] == [("wiki", 0.8), ("notes", 0.2)]
    assert (first.data.sources[1].kind, first.data.sources[1].files) == ("text", ("data/notes.txt",))
    assert first.data.val_source == "wiki"
    assert [(s.label, s.kind, s.files) for s in second.data.sources] == [
        ("dialogues", "jsonl", ("data/dialogues.jsonl",))
    ]
    assert (first.model.dropout, second.model.dropout) == (0.1, 0.1)
    flat = plan_from_json(folder / "flat.json")[0]
    assert [(s.label, s.weight) for s in flat.data.sources] == [("wiki", 0.9), ("notes", 0.1)]
    assert (flat.data.tokenizer, flat.model.V, flat.train.eval_sequences) == ("bytes", 256, 160)
    (nested,) = plan_from_json(folder / "nested.json")
    assert (nested.phase, nested.train.B, nested.train.amp, nested.train.warmup) == ("sft", 4, False, 90)
    assert [(s.label, s.weight) for s in nested.data.sources] == [("dolly15k", 0.5), ("oasst1", 0.5)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "old.json:1:2: invalid JSON"),
        (json.dumps(FLAT | {"optimizer": {}}), "unknown optimizer"),
        (json.dumps(FLAT | {"train": {"lr": 1}}), "unknown lr"),
        (json.dumps(FLAT | {"model": {"V": 300, "heads": 1}}), "model.heads is unknown"),
        (json.dumps(FLAT | {"train": {"B": 0}}), "train.B=0: "),
        (json.dumps(PIPELINE | {"seed": 1}), "unknown seed"),
        (json.dumps({"sft_config_path": "sft.json"}), "must both be paths of configs"),
        (json.dumps(FLAT | {"model_cfg": {}}), "has both model and model_cfg"),
        (json.dumps(FLAT | {"training": {"model": {}}}), "model is given twice"),
        (
            json.dumps({"pretrain_config_path": "gone.json", "sft_config_path": "a.json"}),
            "there is no gone.json in the",
        ),
        (json.dumps(FLAT | {"train": {"eval_steps": 4, "B": True}}), "B is not a whole number"),
        (json.dumps(FLAT | {"model": 3}), "model is not a JSON object"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        plan_from_json(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_experiment_composes_to_the_same_plan_and_to_others_by_their_options(folder: Path, shape: str) -> None:
    assert compose_experiment(folder, shape) == plan_from_json(folder / f"{shape}.json")
    plan = compose_experiment(
        folder, shape, "precision=off", "memory=ckpt", "optim=muon", "compile=on", "model=small"
    )
    for cfg, old in zip(plan, plan_from_json(folder / f"{shape}.json"), strict=True):
        train = cfg.train
        assert (train.amp, train.activation_checkpointing, train.compile) == (False, True, True)
        assert (train.optim, train.schedule, train.betas) == ("muon", "linear", (0.8, 0.98))
        assert (train.base_lr, cfg.model, cfg.data) == (old.train.base_lr, old.model, old.data)


def test_precision_and_memory_may_differ_between_the_phases(folder: Path) -> None:
    train = {"amp": False, "amp_dtype": "bf16", "activation_checkpointing": True}
    (folder / "sft.json").write_text(json.dumps(SFT | {"train_cfg": SFT["train_cfg"] | train}))  # type: ignore[operator]
    assert compose_experiment(folder, "pipeline") == plan_from_json(folder / "pipeline.json")


def compose_experiment(folder: Path, shape: str, *overrides: str) -> list[RunCfg]:
    """Return what Hydra makes of the experiment."""
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{shape}.yaml").write_text(format_experiment(folder / f"{shape}.json"))
    with composing() as compose:
        return load_plan(compose(f"experiment={shape}", f"hydra.searchpath=[file://{folder}]", *overrides))


def test_the_script_writes_an_experiment_once(folder: Path) -> None:
    (folder / "own" / "experiment").mkdir(parents=True)
    (folder / "flat.json").rename(folder / "12.json")
    words = ["12.json", "--to", "own/experiment"]
    done = processes.cli(*words, cwd=folder, script="import-json")
    assert done.stdout.startswith("wrote own/experiment/old_12.yaml; choose it with experiment=old_12\n"), (
        done.stderr
    )
    said = "source notes: your own text; put it into data/notes.txt, relative to the folder you train in\n"
    before = (folder / "own" / "experiment" / "old_12.yaml").read_text()
    assert said in done.stdout and f"# {said}" in before
    again = processes.cli(*words, cwd=folder, script="import-json")
    assert again.returncode == 2 and "already exists\nhint: choose another name with --name\n" in again.stderr
    assert (folder / "own" / "experiment" / "old_12.yaml").read_text() == before
    assert processes.cli(*words, "--name", "other", cwd=folder, script="import-json").returncode == 0
    assert (folder / "own" / "experiment" / "other.yaml").read_text() == before.replace(
        "name: old_12", "name: other"
    )


@pytest.mark.skipif(not COLLECTED.exists(), reason="the collection of older configs is not here")
@pytest.mark.parametrize(
    "path", sorted(COLLECTED.rglob("*.json")), ids=lambda path: str(path.relative_to(COLLECTED))
)
def test_the_collected_older_configs_become_experiments_that_compose(path: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / f"{path.stem}.yaml").write_text(format_experiment(path))
    with composing() as compose:
        plan = load_plan(compose(f"experiment={path.stem}", f"hydra.searchpath=[file://{tmp_path}]"))
    assert plan == plan_from_json(path)
    assert all((cfg.train.optim, cfg.train.schedule) == ("adamw", "cosine") for cfg in plan)
    assert all(cfg.model.tie_embeddings for cfg in plan)
