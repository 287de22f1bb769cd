"""niels_gpt eval: figures of text, dialogues and questions, and how two models differ."""

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from support import processes

from niels_gpt.config import SourceCfg
from niels_gpt.data import synthetic
from niels_gpt.weights.checkpoint import read_checkpoint

DIALOGUES = [f'{{"prompt": "What is {n} plus 1?", "completion": "It is {n + 1}."}}\n' for n in range(30)]


def evaluate(*words: object, cwd: Path) -> Any:
    done = processes.cli(*map(str, words), "--json", cwd=cwd, script="eval")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Documents as the smoke test learns them, and a folder with one file, compressed."""
    text = "\n".join(document.text for document in synthetic.read_documents(SourceCfg(kind="synthetic", size=200)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    rows = (json.dumps({"text": line}) for line in text.splitlines()[:50])
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    return ["folder", "rows.jsonl"]


def test_a_trained_model_beats_an_untrained_one_and_a_copy_is_equal(
    finished_run: Path, run_folder: Run, texts: list[str], tmp_path: Path
) -> None:
    small = ("data.tokenizer=bytes", "model.V=256", "data.size=100", "train.total_steps=1", "train.warmup_steps=0")
    untrained = run_folder(*small, "model.T=32", "data.val_fraction=0.2")
    copy = shutil.copytree(finished_run / "pretrain", tmp_path / "copy" / "pretrain").parent
    shutil.copy(finished_run / "tokenizer.json", copy)
    models = [finished_run / "pretrain", copy, untrained]
    (result,) = evaluate(*models, "--files", *texts, cwd=tmp_path)
    figures, (equal, worse) = result["models"], result["bits_per_byte_differences"]
    assert [entry["model"] for entry in figures] == [str(path) for path in models]
    for entry in figures:
        loss, bits = (entry[key]["value"] for key in ("loss_per_token", "bits_per_byte"))
        assert entry["perplexity"]["value"] == pytest.approx(math.exp(loss))
        assert bits == pytest.approx(loss * entry["tokens"] / math.log(2) / result["bytes"])
        assert 0 < entry["bits_per_byte"]["error"] < bits / 10
    assert (equal["value"], equal["error"]) == (0, 0)
    assert worse["low"] > 0 and worse["value"] == pytest.approx(
        figures[2]["bits_per_byte"]["value"] - figures[0]["bits_per_byte"]["value"]
    )


def test_people_get_a_table_with_a_verdict_for_each_model(
    finished_run: Path, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "chat.jsonl").write_text("".join(DIALOGUES))
    words = [finished_run, finished_run / "pretrain", "--files", *texts, "--stride", "20", "--chat", "chat.jsonl"]
    done = processes.cli(*map(str, words), cwd=tmp_path, script="eval")
    assert (done.returncode, done.stderr) == (0, "")
    *weights, about, head, one, other, difference, blank = done.stdout.splitlines()[:8]
    rows = [one, other]
    assert weights == [f"{finished_run}: sft/best.pt, step 4", f"{words[1]}: pretrain/best.pt, step 4"]
    assert about.startswith("folder rows.jsonl: documents: 51, bytes: ") and head.split()[:2] == [
        "model",
        "tokens",
    ]
    assert all(row.count(" ± ") == 3 for row in rows) and blank == ""
    assert difference.startswith(f"{finished_run / 'pretrain'} - {finished_run}: ")
    assert "chat.jsonl: dialogues: 30\n" in done.stdout and "loss per answer" in done.stdout


@pytest.mark.slow
def test_without_text_it_asks_questions(finished_run: Path, tmp_path: Path) -> None:
    for result in evaluate(finished_run, finished_run / "pretrain", cwd=tmp_path):
        for entry in result["models"]:
            assert entry["exact"]["of"] == entry["chosen"]["of"] == 4 * entry["chosen"]["by_chance"]
            assert entry["chosen"]["low"] < 0.25 < entry["chosen"]["high"], "it has learned nothing in four steps"
            assert entry["exact"]["count"] <= entry["exact"]["by_chance"]
        assert result["bits_per_byte_differences"][0]["low"] > 0, "but the form of an answer"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--files", "none.txt"], 3, "error: --files: no file matches 'none.txt'"),
        (["--files", "blank.txt"], 3, "error: blank.txt: no text\nhint: name files with text in --files"),
        (["--files", "bad.txt"], 3, "error: bad.txt:1: not text in UTF-8"),
        (["--files", "chat.jsonl"], 3, "error: chat.jsonl: no documents\nhint: --files is for text, --chat for"),
        (["--chat", "rows.jsonl"], 3, "error: rows.jsonl: no answers to learn\nhint: --files is for text"),
        (["--chat", "none.jsonl"], 3, "error: --chat: no file matches 'none.jsonl'"),
        (["--files", "nul.txt"], 3, "error: nul.txt:1: NUL bytes, not text in UTF-8"),
        (["--files", "none"], 3, "error: --files: no file matches 'none'\nhint: paths are relative to "),
        (["--chat", "odd.jsonl"], 3, "error: odd.jsonl:1: "),
        (["--files", "one.txt", "--step", "x"], 2, "error: argument --step: must be a whole number, got 'x'\n"),
        (["--files", "one.txt", "--stride", "65"], 2, "error: --stride 65 is more than the context of "),
        (["--files", "one.txt", "--step", "77"], 4, "error: "),
    ],
)
def test_what_cannot_be_measured_is_refused(
    finished_run: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfa")
    (tmp_path / "nul.txt").write_bytes(bytes(99))
    (tmp_path / "odd.jsonl").write_text('{"prompt": 1}\n')
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "chat.jsonl").write_text(DIALOGUES[0])
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    done = processes.cli(str(finished_run), *words, cwd=tmp_path, script="eval")
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.startswith(said), done.stderr
    assert "data." not in done.stderr.replace("data.jsonl", "") and "data=" not in done.stderr.replace(
        "as for data=", ""
    )


def test_a_model_whose_loss_is_not_a_number_is_not_compared(
    finished_run: Path, copied_run: Path, texts: list[str], tmp_path: Path
) -> None:
    saved = read_checkpoint(copied_run / "sft" / "best.pt")
    saved["model_state"]["norm.weight"].fill_(math.nan)
    torch.save(saved, copied_run / "sft" / "best.pt")
    done = processes.cli(str(finished_run), str(copied_run), "--files", *texts, cwd=tmp_path, script="eval")
    assert done.returncode == 0 and f"{copied_run} and {finished_run} cannot be compared" in done.stdout


def test_a_single_document_has_figures_without_an_error(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a")
    words = [str(finished_run), str(finished_run / "pretrain"), "--files", "one.txt"]
    done = processes.cli(*words, cwd=tmp_path, script="eval")
    assert done.returncode == 0 and "nan" not in done.stdout and "±" not in done.stdout
    assert "one document or dialogue is too few" in done.stdout
    (result,) = evaluate(*words, cwd=tmp_path)
    assert result["models"][0]["tokens"] == 1 and result["models"][0]["loss_per_token"]["error"] is None
