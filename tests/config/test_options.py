"""Promise 8: every shipped experiment and every option of every group composes and validates."""

import pytest
from conftest import CONF, Compose
from hydra import compose
from omegaconf import OmegaConf

from train.config import load_plan
from train.config.describe import list_groups
from train.config.schema import TrainCfgSchema

ENGINES = {
    "launcher=parallel": "hydra_joblib_launcher",
    "launcher=queue": "hydra_submitit_launcher",
    "launcher=ray_local": "hydra_ray_launcher",
    "launcher=slurm": "hydra_submitit_launcher",
    "sweeper=search": "hydra_optuna_sweeper",
}


def test_every_preset_of_an_engine_is_known_here() -> None:
    presets = [*(CONF / "hydra" / "launcher").glob("*.yaml"), *(CONF / "hydra" / "sweeper").glob("*.yaml")]
    assert {f"{path.parent.name}={path.stem}" for path in presets} == set(ENGINES)


def test_the_help_says_whole_sentences_about_each_option() -> None:
    said = {
        f"{group}={name}": text for group, names in list_groups([CONF]).items() for name, text in names.items()
    }
    assert len(said) > 30 and [option for option, text in said.items() if not text.endswith(".")] == []


@pytest.mark.parametrize(("preset", "plugin"), ENGINES.items())
@pytest.mark.usefixtures("composed")
def test_every_preset_of_an_engine_composes(preset: str, plugin: str) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}")
    hydra = compose("config", overrides=[f"hydra/{preset}"], return_hydra_config=True).hydra
    resolved = OmegaConf.to_container(hydra[preset.split("=")[0]], resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict) and plugin in resolved["_target_"]


def test_the_main_job_is_a_pipeline_of_the_tiny_model_on_pydocs(composed: Compose) -> None:
    plan = load_plan(composed("precision=fp16", "memory=ckpt"))
    assert [cfg.phase for cfg in plan] == ["pretrain", "sft"]
    assert plan[0].model.model_dump(include={"V", "T", "C", "L", "H", "d_ff"}) == {
        "V": 4096, "T": 256, "C": 128, "L": 4, "H": 4, "d_ff": 384,
    }  # fmt: skip
    assert plan[0].data.kind == "pydocs"
    assert all(cfg.train.amp and cfg.train.activation_checkpointing for cfg in plan)


@pytest.mark.parametrize("group", ["optim", "precision", "memory", "compile"])
def test_every_option_of_a_group_sets_the_same_settings(group: str) -> None:
    """So that one option replaces another entirely; base_lr, which models and phases set too, is apart."""
    options = [set(OmegaConf.load(path)) - {"base_lr"} for path in (CONF / group).glob("*.yaml")]
    assert len(options) > 1 and all(option == options[0] for option in options)


def test_a_setting_of_train_reaches_both_phases_and_one_of_sft_the_second(composed: Compose) -> None:
    first, second = load_plan(composed("train.B=6", "train.seed=3", "sft.train.base_lr=1e-5", "sft.train.seed=4"))
    assert (first.train.B, second.train.B) == (6, 6)
    assert (first.train.seed, second.train.seed) == (3, 4)
    assert second.train.base_lr == 1e-5 != first.train.base_lr


def test_the_second_phase_of_a_pipeline_has_a_length_and_a_learning_rate_of_its_own(composed: Compose) -> None:
    usual, changed = (load_plan(composed(*own)) for own in ([], ["train.total_steps=7", "train.base_lr=0.5"]))
    assert changed[1] == usual[1] and changed[0] != usual[0]
    followed = {key for key, value in usual[0].train if value == getattr(usual[1].train, key)}
    assert set(TrainCfgSchema.model_fields) - followed == {"total_steps", "base_lr"}


def test_sft_data_can_be_another_option_of_the_group_data(composed: Compose) -> None:
    overrides = ["data=text", "data.files=a.txt", "+data@sft.data=jsonl", "sft.data.files=b.jsonl"]
    first, second = load_plan(composed(*overrides))
    assert (first.data.kind, first.data.files) == ("text", ("a.txt",))
    assert (second.data.kind, second.data.files) == ("jsonl", ("b.jsonl",))


def test_a_mixture_is_a_list_that_replaces_the_single_source(composed: Compose) -> None:
    sources = "data.sources=[{kind:pydocs,weight:3,packages:numpy},{kind:text,name:notes,files:[a.txt]}]"
    first, second = load_plan(composed("phase=pretrain", sources))[0].data.mixture()
    assert [(source.label, source.weight) for source in (first, second)] == [("pydocs", 3.0), ("notes", 1.0)]
    assert (first.packages, second.files) == (("numpy",), ("a.txt",)), "a text stands for a list of one"
    assert load_plan(composed("data.packages=torch"))[1].data.packages == ("torch",)
