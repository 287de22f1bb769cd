"""A run starts from others' weights, or from those of a run, with nothing typed again."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Run, final, same, stopped_after
from support.llama_folders import change_config, change_weights, make_llama

from niels_gpt.errors import CheckpointError, Interrupted
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.llama import read_llama
from niels_gpt.weights.trained_model import open_model

OWN = ("data.size=200", "train.ckpt_every=1")


@pytest.mark.parametrize(
    ("experiment", "damaged"), [("smoke_sft", None), ("smoke_pipeline", None), ("smoke_sft", "tokenizer.json")]
)
def test_a_run_from_a_folder_is_resumed_exactly_even_if_the_folder_is_gone_or_damaged(
    run_folder: Run, tmp_path: Path, experiment: str, damaged: str | None
) -> None:
    make_llama(theirs := tmp_path / "theirs")
    own = (*OWN, f"init_from={theirs}")
    straight = run_folder(*own, experiment=experiment, name="straight")
    assert not same(final(straight / "sft")["model_state"], read_llama(theirs)["model_state"])
    with stopped_after(2), pytest.raises(Interrupted):
        run_folder(*own, experiment=experiment)
    shutil.copytree(theirs, tmp_path / "elsewhere")
    if damaged:
        (theirs / damaged).unlink()
    else:
        shutil.rmtree(theirs)
    run = run_folder(*own, experiment=experiment)
    for phase in (path.parent.name for path in straight.glob("*/latest.pt")):
        ours, other = final(run / phase), final(straight / phase)
        assert all(same(ours[key], other[key]) for key in ("model_state", "optimizer_state", "step"))
    assert open_model(run).tokenizer.hash() == open_model(tmp_path / "elsewhere").tokenizer.hash()


def test_the_first_loss_is_that_of_the_folder(run_folder: Run, tmp_path: Path) -> None:
    """A learning rate of nearly nothing leaves the weights as they were."""
    make_llama(tmp_path / "theirs")
    run = run_folder(*OWN, f"init_from={tmp_path / 'theirs'}", "train.base_lr=1e-12", experiment="smoke_sft")
    torch.testing.assert_close(final(run / "sft")["model_state"], read_llama(tmp_path / "theirs")["model_state"])


def test_a_run_is_not_continued_from_other_weights(run_folder: Run, tmp_path: Path) -> None:
    make_llama(theirs := tmp_path / "theirs")
    own = (*OWN, f"init_from={theirs}")
    with stopped_after(1), pytest.raises(Interrupted):
        run_folder(*own, experiment="smoke_sft")
    change_weights(theirs, model__norm__weight=torch.ones(36))
    with pytest.raises(
        CheckpointError, match=r"its init_from is weights \w{16}, but this run's is weights \w{16}"
    ):
        run_folder(*own, experiment="smoke_sft")


def test_the_context_may_differ_and_is_said_and_other_misfits_are_refused_by_name(
    run_folder: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="niels_gpt")
    make_llama(theirs := tmp_path / "theirs")
    own = (*OWN, f"init_from={theirs}")
    for T in (32, 128):
        run = run_folder(*own, f"model.T={T}", experiment="smoke_sft", name=f"T{T}")
        assert f"sft: model.T={T}; these weights have learned from sequences of 64" in caplog.text
        assert read_checkpoint(run / "sft" / "best.pt")["model_cfg"]["T"] == T
    with pytest.raises(CheckpointError, match=r"different models:\nmodel.rope_theta=5000.0, not 7.0$"):
        run_folder(*own, "model.rope_theta=7.0", experiment="smoke_sft", name="other")
    change_config(theirs, attention_bias=True)
    with pytest.raises(CheckpointError, match="attention_bias=True is not supported"):
        run_folder(*own, experiment="smoke_sft", name="another")


def test_a_run_that_has_a_config_json_of_its_own_is_still_a_run(copied_run: Path, run_folder: Run) -> None:
    (copied_run / "config.json").write_text("{}")
    assert open_model(copied_run).chats
    run_folder(*OWN, f"init_from={copied_run}", "train.total_steps=1", experiment="smoke_sft", name="second")


def test_sft_from_a_run_folder_needs_nothing_typed_again(run_folder: Run) -> None:
    shape = ("model.C=48", "model.L=1", "model.H_kv=1", "model.tie_embeddings=true")
    first = run_folder(*OWN, *shape, "train.total_steps=2")
    second = run_folder(*OWN, f"init_from={first}", "train.total_steps=2", experiment="smoke_sft", name="second")
    saved = read_checkpoint(second / "sft" / "best.pt")
    assert saved["model_cfg"] == read_checkpoint(first / "pretrain" / "best.pt")["model_cfg"]
    assert saved["train_cfg"]["init_from"].startswith("pretrain step 2 ")
