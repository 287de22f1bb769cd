"""niels_gpt checkpoints lists what a run has saved, and sample and export take what it lists."""

import json
from pathlib import Path

import pytest
from conftest import Run
from safetensors.torch import load_file
from support import processes

from niels_gpt.weights.checkpoint import read_checkpoint

KEPT = ("train.total_steps=4", "train.ckpt_every=1", "train.eval_every=2", "train.keep_last=4", "train.ema=0.9")


def test_checkpoints_are_listed_with_step_loss_size_and_damage(run_folder: Run, tmp_path: Path) -> None:
    phase = run_folder(*KEPT) / "pretrain"
    (phase / "step_0000001.pt").write_bytes(b"\x00" * 10**6)
    (phase / "step_0000003.pt").rename(phase / "step_0000007.pt")
    (phase / "step_0000008.pt.damaged").write_bytes(b"")
    losses = [read_checkpoint(phase / f"step_000000{step}.pt")["best_val_loss"] for step in (2, 4)]
    assert losses[1] < losses[0], "each is the loss of its own step"
    listed = processes.cli("run", cwd=tmp_path, script="checkpoints")
    asked = processes.cli("run/pretrain", "--json", cwd=tmp_path, script="checkpoints")
    entries = json.loads(asked.stdout)
    size = (phase / "step_0000002.pt").stat().st_size
    unreadable = "cannot be read (File is not a zip file)"
    assert [list(entry.values()) for entry in entries] == [
        ["run/pretrain/step_0000008.pt.damaged", [], None, None, 0, unreadable],
        ["run/pretrain/step_0000001.pt", [], 1, None, 10**6, unreadable],
        ["run/pretrain/step_0000002.pt", [], 2, losses[0], size, None],
        ["run/pretrain/step_0000004.pt", ["best.pt", "latest.pt"], 4, losses[1], size, None],
        ["run/pretrain/step_0000007.pt", [], 3, None, size, "it holds step 3"],
    ]
    head, _, first, second, last, *_ = listed.stdout.splitlines()
    assert head.split() == ["checkpoint", "step", "loss", "MB", "state"]
    assert first.split(maxsplit=3) == ["run/pretrain/step_0000001.pt", "1", "1.0", f"damaged: {unreadable}"]
    assert second.split() == ["run/pretrain/step_0000002.pt", "2", f"{losses[0]:.4f}", f"{size / 1e6:.1f}", "good"]
    assert "/step_0000004.pt, best.pt, latest.pt " in last and listed.stdout.count("\n") == 6


@pytest.mark.parametrize("name", ["none", "file"])
def test_a_path_without_checkpoints_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    done = processes.cli(name, cwd=tmp_path, script="checkpoints")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"error: {name} has no checkpoints\nhint: name a run folder")


@pytest.mark.parametrize("choice", [["--step", "2"], ["--average", "2"], ["--ema"]])
def test_sample_and_export_take_the_chosen_weights(run_folder: Run, tmp_path: Path, choice: list[str]) -> None:
    phase = run_folder(*KEPT) / "pretrain"
    saved = [read_checkpoint(phase / f"step_000000{step}.pt") for step in (2, 3, 4)]
    second, third, fourth = (content["model_state"]["embedding.weight"] for content in saved)
    expected = {
        "--step": second,
        "--average": (third + fourth) / 2,
        "--ema": saved[-1]["optimizer_state"]["parts"][-1]["state"][0]["ema"],
    }[choice[0]]
    done = processes.cli("run", "out", *choice, cwd=tmp_path, script="export")
    assert (done.returncode, done.stderr) == (0, "")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    named = {"--step": "pretrain/step\\_0000002.pt, step 2"}
    named["--average"] = "the mean of 2 checkpoints up to pretrain/step\\_0000004.pt, step 4"
    named["--ema"] = "the moving average in pretrain/step\\_0000004.pt, step 4"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Weights: {named[choice[0]]}.\n" in card
    assert (weights["model.embed_tokens.weight"] - expected).abs().max() < 1e-6
    assert (second - fourth).abs().max() > 1e-3
    said = processes.cli("run", "--prompt", "a", "--max-tokens", "3", *choice, cwd=tmp_path, script="sample")
    assert (said.returncode, said.stderr) == (0, "") and said.stdout.startswith("a")
    refused = processes.cli("run", "--prompt", "a", "--average", "5", cwd=tmp_path, script="sample")
    assert refused.returncode == 4 and "hint: train with train.keep_last=5," in refused.stderr
