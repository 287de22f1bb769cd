"""niels_gpt export: the files that others read, and a card that says what the model is."""

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support import processes

from niels_gpt.weights import verify

FILES = {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja", "README.md"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


def export(*words: object, cwd: Path, weights: str = "sft/best.pt, step 4") -> Path:
    done = processes.cli(*map(str, words), "out", cwd=cwd, script="export")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote out from {weights}\n", "")
    return cwd / "out"


def test_an_export_has_every_file_and_its_card_says_how_each_phase_went(
    finished_run: Path, tmp_path: Path
) -> None:
    out = export(finished_run, "--dtype", "float16", cwd=tmp_path)
    assert {path.name for path in out.iterdir()} == FILES
    assert str(load_file(out / "model.safetensors")["model.norm.weight"].dtype) == "torch.float16"
    card = (out / "README.md").read_text()
    phases = json.loads((finished_run / "result.json").read_text())["phases"]
    assert [line for line in card.splitlines() if line.startswith("#")] == ["# run", "## Pretraining", "## SFT"]
    for phase in phases:
        assert f"{phase['best_val_loss']:.4f} nats per token, {phase['bits_per_byte']:.3f} bits per byte" in card
    assert "Weights: sft/best.pt, step 4.\n" in card
    assert card.count(r"train.total\_steps=4, train.eval\_every=2") == 2 and "train.B" not in card
    assert card.count("\n|  2,048 |") == 2, "the last evaluation of each phase"
    assert json.loads((out / "tokenizer_config.json").read_text())["eos_token"] == "<|end_of_turn|>"


def test_the_card_of_pretraining_alone_knows_nothing_of_sft(finished_run: Path, tmp_path: Path) -> None:
    pretrain = finished_run / "pretrain"
    out = export(pretrain / "latest.pt", cwd=tmp_path, weights="pretrain/latest.pt, step 4")
    card = (out / "README.md").read_text()
    assert "## Pretraining" in card and "## SFT" not in card


def test_the_card_does_not_say_where_files_are(copied_run: Path, tmp_path: Path) -> None:
    result = json.loads((copied_run / "result.json").read_text())
    result["phases"][0]["settings"]["init_from"] = "/home/me/secret/SmolLM2"
    files = {"kind": "text", "files": ["/home/me/secret/*.txt"], "cache_dir": "/home/me/cache", "learn": "all"}
    for phase in result["phases"]:
        phase["settings"]["data"] |= files | {"tokenizer": "/home/me/gpt2/tokenizer.json"}
    (copied_run / "result.json").write_text(json.dumps(result))
    card = (export(copied_run, cwd=tmp_path) / "README.md").read_text()
    assert "/home" not in card and "secret" not in card
    assert card.count("- Started from the weights of SmolLM2\n") == 1
    assert r"Text: text files, \*.txt, learn=all" in card and "data.tokenizer=tokenizer.json" in card


@pytest.mark.parametrize("settings", [None, {}, {"data": {"kind": 7}}, {"data": {}, "train": []}])
def test_a_run_whose_other_files_are_damaged_is_exported_all_the_same(
    copied_run: Path, tmp_path: Path, settings: Any
) -> None:
    result = json.loads((copied_run / "result.json").read_text())
    for phase in result["phases"]:
        phase["settings"] = settings
    (copied_run / "result.json").write_text(json.dumps(result) if settings is not None else "\0")
    for path in copied_run.glob("*/metrics.jsonl"):
        path.write_text('{"event": "val", "step": 1}\n')
    done = processes.cli(str(copied_run), "out", cwd=tmp_path, script="export")
    assert (done.returncode, done.stdout) == (
        0,
        "wrote out from sft/best.pt, step 4\n",
    ) and "Traceback" not in done.stderr
    assert "A GPT of 53,408 parameters" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_that_is_exported_again_is_the_same_to_the_byte(finished_run: Path, tmp_path: Path) -> None:
    first = export(finished_run, cwd=tmp_path).rename(tmp_path / "first")
    again = export(first, cwd=tmp_path, weights="model.safetensors")
    names = sorted(FILES - {"README.md"})
    assert filecmp.cmpfiles(first, again, names, shallow=False)[0] == names
    assert (again / "README.md").read_text().count("# first\n") == 1
    refused = processes.cli("first", "new", "--step", "2", cwd=tmp_path, script="export")
    assert "first has one set of weights, so --step, --average and --ema do not apply" in refused.stderr


def hide_programs() -> None:
    verify.READERS["hf"] = {"transformers": "no_such_module", "mlx-lm": "nor_this"}


def test_nothing_is_written_if_no_program_could_verify_it(finished_run: Path, tmp_path: Path) -> None:
    words = [str(finished_run), "out", "--verify"]
    done = processes.cli(*words, cwd=tmp_path, script="export", before=hide_programs)
    reason = "no program could check out: transformers or mlx-lm is not installed"
    hint = "install one beside niels_gpt, or leave out --verify"
    assert (done.returncode, done.stderr) == (1, f"error: {reason}\nhint: {hint}\n")
    assert [*tmp_path.iterdir()] == []
