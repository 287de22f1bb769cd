"""niels_gpt prepare builds what a run would build, makes no run, and shows the data as it is, and harmlessly."""

import json
import os
import re
from pathlib import Path

import pytest
from support.processes import cli

from niels_gpt.tokenizer import ASSISTANT, END_OF_TURN, USER, load_tokenizer

PIPELINE = ("experiment=smoke_pipeline", "data.size=200", "train.total_steps=1", "sft.train.total_steps=1")
HOSTILE = "a [red]word[/red] and [[two]], \x1b[2J \x07 \u202e \r\n:smile: 漢字"
SHOWN = r"a [red]word[/red] and [[two]], \x1b[2J \x07 \u202e \r"
ANSWERS = [f"Answer {n} of\nthe questions." for n in range(40)]


@pytest.fixture
def chats(tmp_path: Path) -> list[str]:
    """The settings of dialogues with one target each, and a user who writes what a terminal could act on."""
    rows = [{"prompt": f"{n}: {HOSTILE}", "completion": answer} for n, answer in enumerate(ANSWERS)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["phase=sft", "data=jsonl", "data.files=chats.jsonl", "data.tokenizer=bytes", "model.V=null"]


def test_training_finds_all_that_it_has_built_and_no_run_is_made(tmp_path: Path) -> None:
    words = [*PIPELINE, "model.V=300", "data.tokenizer=bpe"]
    assert cli(*words, cwd=tmp_path, script="prepare").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    built = sorted((tmp_path / "cache").iterdir())
    assert sum(path.is_dir() for path in built) == 2 and sum(path.match("tokenizer-*.json") for path in built) == 1
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0 and "tokenizing" not in done.stderr + done.stdout, done.stderr
    assert sorted((tmp_path / "cache").iterdir()) == built


def test_the_tokenizer_is_that_of_the_weights_to_start_from(finished_run: Path, tmp_path: Path) -> None:
    words = ["experiment=smoke_sft", f"init_from={finished_run}/pretrain/best.pt", "data.size=200"]
    done, theirs = (
        cli(*words, "--json", cwd=tmp_path, script="prepare"),
        load_tokenizer(finished_run / "tokenizer.json"),
    )
    assert json.loads(done.stdout)[0]["tokenizer"]["sha256"] == theirs.hash()
    assert not list((tmp_path / "cache").glob("tokenizer-*")) and not (tmp_path / "runs").exists()


def test_its_json_has_all_that_it_shows_of_every_phase_and_source(tmp_path: Path, chats: list[str]) -> None:
    sources = "data.sources=[{kind:synthetic,size:200},{kind:jsonl,name:mine,files:[chats.jsonl]}]"
    done = cli(*PIPELINE, sources, "model.T=256", "--json", "--out", "all.json", cwd=tmp_path, script="prepare")
    phases = json.loads(done.stdout)
    assert done.returncode == 0 and phases == json.loads((tmp_path / "all.json").read_text())
    assert "epochs of documents" in done.stderr and "epochs of dialogues" in done.stderr
    named = [(phase["phase"], [source["source"] for source in phase["sources"]]) for phase in phases]
    assert named == [("pretrain", ["synthetic"]), ("sft", ["synthetic", "mine"])]
    for source in (source for phase in phases for source in phase["sources"]):
        assert (tmp_path / source["cache"] / "meta.json").exists() and len(source["examples"]) == 5
        assert source["train"]["items"] > source["val"]["items"] > 0 and source["common_tokens"]
        assert source["train"].keys() < source["val"].keys()
    assert [len(phase["batch"]) for phase in phases] == [0, 2]


def test_each_source_of_a_mixture_has_its_weight_and_the_epochs_it_makes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one two three four. " * 400)
    (tmp_path / "b").write_text("Five, six, seven, eight! " * 200)
    sources = "data.sources=[{kind:text,files:[a],weight:3},{kind:text,name:b,files:[b]}]"
    words = [
        "phase=pretrain",
        sources,
        "data.tokenizer=bytes",
        "model.V=null",
        "model.T=16",
        "train.total_steps=500",
    ]
    done = cli(*words, "train.B=2", "train.accum_steps=4", "--json", cwd=tmp_path, script="prepare")
    (phase,) = json.loads(done.stdout)
    assert [source["weight"] for source in phase["sources"]] == [3, 1]
    (warning,) = phase["warnings"]
    assert warning.startswith("the text is repeated (text 6 times); after about 4 times")
    assert f"\nwarning: {warning[:50]}" in done.stderr
    for source, share in zip(phase["sources"], (0.75, 0.25), strict=True):
        tokens = 500 * 2 * 4 * 16 * share
        assert source["epochs"] == pytest.approx(tokens / source["train"]["tokens"], rel=0.02)
        assert re.search(rf"weight +{source['weight']:g}\b.*\n *epochs +{source['epochs']:.2g}\b", done.stderr)
    assert re.search(r"data: tokenizing text: 1 document, 8\.0 kB", done.stderr), done.stderr
    assert re.search(r"[1-9],\d{3} tokens in train", done.stderr)


def test_targets_are_marked_and_nothing_that_a_user_wrote_acts_on_the_terminal(
    tmp_path: Path, chats: list[str]
) -> None:
    done = cli(*chats, cwd=tmp_path, script="prepare", env=os.environ | {"COLUMNS": "500"})
    assert done.returncode == 0 and not set("\x1b\x07\r\u202e😄") & set(done.stdout), done.stderr
    turn = re.escape(f"{SHOWN}\n:smile: 漢字{END_OF_TURN}\n{ASSISTANT}[[")
    answer = rf"Answer \d+ of\nthe questions\.{re.escape(END_OF_TURN)}\]\]\n"
    _, *sequences = re.split(r"^a sequence with its \[\[targets\]\], then .*\n", done.stdout, flags=re.M)
    assert len(sequences) == 2
    for text in sequences:
        assert re.fullmatch(rf"({re.escape(USER)}\d+: {turn}{answer}\n)+", text), "an empty line ends a dialogue"


def test_in_colour_targets_are_green_and_a_narrow_terminal_is_wide_enough(
    tmp_path: Path, chats: list[str]
) -> None:
    env = os.environ | {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm"}
    first, done = (cli(*chats, cwd=tmp_path, script="prepare", env=env) for _ in range(2))  # one shows progress
    assert first.returncode == done.returncode == 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    assert not set("\x1b\x07\r\u202e😄") & set(plain) and max(map(len, plain.splitlines())) <= 40
    green = set(re.findall(r"\x1b\[32m(.*?)\x1b\[0m", done.stdout))
    lines = {line for answer in ANSWERS for line in answer.split("\n")}
    assert green and green <= lines | {END_OF_TURN, "targets"} and "[[" not in plain.replace("[[two]]", "")
