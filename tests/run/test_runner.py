"""A run: resumed it ends as if it had never stopped; nothing is overwritten; a pipeline hands its weights on."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import ROOT, Plan, Run, final, metrics, same, stopped_after

from niels_gpt.errors import CheckpointError, DataError, Interrupted, NielsError, RunFolderInUse
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.run_folder import claim_run_folder, unlock_folder
from train.loop.steps import optimizer_step
from train.run import run
from train.run import runner as run_module

OWNER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 1 on host")
file.flush()
print(1, flush=True)
sys.stdin.read()
"""


def write_text(path: Path, paragraphs: int) -> Path:
    path.write_text("\n\n".join(f"the number {n} is {n % 7} and {n * n}" for n in range(paragraphs)))
    return path


@pytest.fixture
def pretrained(copied_run: Path) -> Path:
    """A run of which there is the pretraining alone, at its end, and no result."""
    shutil.rmtree(copied_run / "sft")
    (copied_run / "result.json").unlink()
    return copied_run


def test_resume_after_one_step_starts_at_two_with_the_new_settings(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Acceptance 6; the startup line and a line for each change say so."""
    run_folder("train.total_steps=1", "precision=fp16", "model.dropout=0")
    seen = []

    def spy(state: Any, *rest: Any) -> Any:
        outcome = optimizer_step(state, *rest)
        seen.append(state.step)
        return outcome

    caplog.set_level(logging.INFO, logger="niels_gpt")
    changed = ("precision=bf16", "memory=ckpt", "model.dropout=0.5", "device=cpu")
    with mock.patch("train.loop.steps.optimizer_step", spy):
        folder = run_folder("train.total_steps=2", *changed)
    assert seen == [2]
    saved = read_checkpoint(folder / "pretrain" / "latest.pt")
    assert saved["step"] == 2
    expected = {"amp": True, "amp_dtype": "bf16", "activation_checkpointing": True, "total_steps": 2}
    assert {key: saved["train_cfg"][key] for key in expected} == expected
    line = "pretrain: device=cpu amp=off amp_dtype=bf16 activation_checkpointing=true micro_B=4 accum_steps=2 "
    assert any(message.startswith(line) for message in caplog.messages)
    for change in ("train.amp_dtype fp16 -> bf16", "model.dropout 0.0 -> 0.5"):
        assert f"pretrain: changed setting: {change}" in caplog.messages


def test_a_pipeline_hands_the_best_weights_on_with_a_new_optimizer(finished_run: Path, plan: Plan) -> None:
    captured: dict[str, Any] = {}

    def first_step(state: Any, *rest: Any) -> Any:
        captured.setdefault("weights", {k: v.clone() for k, v in state.model.state_dict().items()})
        captured.setdefault("optimizer", [part["state"] for part in state.optimizer.state_dict()["parts"]])
        return optimizer_step(state, *rest)

    best = finished_run / "pretrain" / "best.pt"
    alone = plan(experiment="smoke_pipeline")[1].model_copy(update={"init_from": str(best)})
    with mock.patch("train.loop.steps.optimizer_step", first_step):
        run([alone])
    assert same(captured["weights"], dict(read_checkpoint(best)["model_state"]))
    assert captured["optimizer"] == [{}, {}]
    # the second phase alone, from that checkpoint and with its tokenizer, is the pipeline's second phase
    assert (Path(alone.dir) / "tokenizer.json").read_bytes() == (finished_run / "tokenizer.json").read_bytes()
    assert same(final(Path(alone.dir) / "sft"), final(finished_run / "sft"))


def test_a_run_folder_holds_what_the_readme_says(finished_run: Path) -> None:
    expected = {"pretrain", "sft", "tokenizer.json", "result.json", "run.lock"}
    assert {path.name for path in finished_run.iterdir()} == expected
    for phase in ("pretrain", "sft"):
        names = {path.name for path in (finished_run / phase).iterdir()}
        assert {"metrics.jsonl", "curves.png", "latest.pt", "best.pt", "step_0000004.pt"} <= names
    result = json.loads((finished_run / "result.json").read_text())
    assert [entry["phase"] for entry in result["phases"]] == ["pretrain", "sft"]
    assert all((finished_run / entry["checkpoint"]).exists() for entry in result["phases"])


def test_fewer_steps_than_were_taken_end_with_the_last_one_taken(run_folder: Run) -> None:
    with stopped_after(5), pytest.raises(Interrupted):
        run_folder("train.total_steps=6", "train.eval_every=4")
    folder = run_folder("train.total_steps=4", "train.eval_every=4")
    (entry,) = json.loads((folder / "result.json").read_text())["phases"]
    assert (entry["step"], final(folder / "pretrain")["step"]) == (5, 5)
    assert [event["step"] for event in metrics(folder / "pretrain") if event["event"] == "val"] == [4, 5]


def test_a_run_knows_where_its_weights_came_from_though_it_was_resumed_without_a_word_of_it(
    run_folder: Run, finished_run: Path
) -> None:
    begun = f"init_from={finished_run / 'pretrain' / 'best.pt'}"
    run_folder(begun, "train.total_steps=2", experiment="smoke_sft")
    run_folder("train.total_steps=3", experiment="smoke_sft")
    folder = run_folder(begun, "train.total_steps=4", experiment="smoke_sft")
    assert final(folder / "sft")["step"] == 4
    with pytest.raises(CheckpointError, match="its init_from is pretrain step"):
        run_folder(f"init_from={folder / 'sft' / 'best.pt'}", "train.total_steps=5", experiment="smoke_sft")


def test_a_complete_run_is_left_as_it_is_and_says_what_to_do_next(
    run_folder: Run, copied_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [path for path in copied_run.rglob("*") if path.is_file() and path.name != "run.lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    with (
        caplog.at_level(logging.INFO, logger="niels_gpt"),
        mock.patch.object(run_module, "make_model", side_effect=AssertionError),
    ):
        run_folder(experiment="smoke_pipeline")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for phase in ("pretrain", "sft"):
        assert f"{phase}: complete at step 4, nothing to do" in caplog.messages
    end = caplog.messages[next(n for n, line in enumerate(caplog.messages) if line.startswith("finished in")) :]
    (loss,) = {e["loss"] for e in metrics(copied_run / "sft") if e["event"] == "val" and e["step"] == 4}
    assert re.fullmatch(rf"finished in \d+ s: {copied_run}", end[0])
    assert end[2].startswith(f"  sft         validation loss {loss:.4f}, ")
    assert end[3:5] == [
        f"  talk to it  python scripts/sample.py {copied_run} --chat",
        "  train more  the same command with sft.train.total_steps=8",
    ]
    assert "smoke test" in end[5]
    run_folder("sft.train.total_steps=8", experiment="smoke_pipeline")
    assert final(copied_run / "sft")["step"] == 8


def test_resume_from_a_path_goes_on_exactly_from_there(run_folder: Run) -> None:
    overrides = ["train.total_steps=6", "train.ckpt_every=3", "train.keep_last=9"]
    whole = run_folder(*overrides, name="whole")
    middle = whole / "pretrain" / "step_0000003.pt"
    other = run_folder(*overrides, f"resume={middle}", name="other")
    assert same(final(whole / "pretrain"), final(other / "pretrain"))
    assert min(event["step"] for event in metrics(other / "pretrain")) == 4


OTHER = "was trained on different data\nsynthetic: "
UNFIT = {
    "model.C=64": "have different models:\nmodel.C=32, not 64",
    "optim=adamw": "/pretrain/step_0000004.pt: its optim is muon, but this run's is adamw",
    "data.val_fraction=0.1": f"{OTHER}val_fraction 0.05 -> 0.1\n",
    "data.size=90": f"{OTHER}size 2000 -> 90\n",
    "resume=never": "already holds a run",
}


@pytest.mark.parametrize(("change", "said"), UNFIT.items(), ids=UNFIT)
def test_what_does_not_fit_a_run_is_refused_and_leaves_it_as_it_was(
    run_folder: Run, pretrained: Path, change: str, said: str
) -> None:
    before = {path: path.read_bytes() for path in pretrained.glob("pretrain/*.pt")}
    with pytest.raises(CheckpointError) as caught:
        run_folder("train.total_steps=8", change)
    assert said in f"{caught.value}\n"
    if said.startswith(OTHER):
        assert re.search(r"init_from=\S+/pretrain/step_0000004\.pt name=\.\.\.$", caught.value.hint)
    assert {path: path.read_bytes() for path in pretrained.glob("pretrain/*.pt")} == before


def test_going_back_in_a_run_is_refused_since_it_would_lose_the_later_steps(
    run_folder: Run, copied_run: Path
) -> None:
    before = (copied_run / "pretrain" / "latest.pt").read_bytes()
    with pytest.raises(CheckpointError, match="was completed with resume=None, not "):
        run_folder(f"resume={copied_run / 'pretrain' / 'step_0000002.pt'}")
    assert (copied_run / "pretrain" / "latest.pt").read_bytes() == before


def test_a_checkpoint_of_another_phase_is_refused_with_the_way_out(run_folder: Run, finished_run: Path) -> None:
    said = r"/pretrain/best\.pt: its phase is pretrain, but this run's is sft"
    with pytest.raises(CheckpointError, match=said) as caught:
        run_folder(f"resume={finished_run / 'pretrain' / 'best.pt'}", experiment="smoke_sft")
    assert "init_from=" in caught.value.hint


def test_more_pretraining_under_a_finished_sft_is_refused_not_ignored(run_folder: Run, copied_run: Path) -> None:
    best = (copied_run / "pretrain" / "best.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"/pretrain has 4 of 8 steps, but sft has already started from its"):
        run_folder("train.total_steps=8", "sft.train.total_steps=5", experiment="smoke_pipeline")
    assert (copied_run / "pretrain" / "best.pt").read_bytes() == best


def test_a_pipeline_whose_result_is_lost_writes_it_again(run_folder: Run, copied_run: Path) -> None:
    states = [final(copied_run / phase) for phase in ("pretrain", "sft")]
    entries = json.loads((copied_run / "result.json").read_text())["phases"]
    (copied_run / "result.json").write_bytes(b"")
    run_folder(experiment="smoke_pipeline")
    assert same(states, [final(copied_run / phase) for phase in ("pretrain", "sft")])
    again = json.loads((copied_run / "result.json").read_text())["phases"]
    for entry in (*entries, *again):
        del entry["seconds"]
    assert again == entries


def test_a_phase_whose_checkpoints_are_gone_is_not_begun_again_under_the_next(
    run_folder: Run, copied_run: Path
) -> None:
    for path in (copied_run / "pretrain").glob("*.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has 0 of 4 steps, but sft has already started") as caught:
        run_folder(experiment="smoke_pipeline")
    assert caught.value.hint.startswith("use phase=sft alone")
    run_folder("phase=sft", experiment="smoke_pipeline")


def test_a_damaged_best_of_a_finished_phase_does_not_stop_the_next(
    run_folder: Run, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pretrained
    last = final(folder / "pretrain")
    spoil(folder / "pretrain" / "best.pt")
    with caplog.at_level(logging.WARNING, logger="niels_gpt"):
        run_folder("sft.train.total_steps=2", experiment="smoke_pipeline")
    assert "best.pt is damaged" in caplog.text and f"; replaced by step {last['step']}" in caplog.text
    assert same(read_checkpoint(folder / "pretrain" / "best.pt")["model_state"], last["model_state"])
    spoil(folder / "pretrain" / "best.pt")
    run_folder("sft.train.total_steps=4", experiment="smoke_pipeline")
    assert "best.pt is damaged" in caplog.text and "sft resumes from its own checkpoint" in caplog.text
    assert final(folder / "sft")["step"] == 4


def test_a_phase_that_is_run_apart_finds_its_weights_from_within_and_keeps_the_other_result(
    run_folder: Run, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder()
    tokenizer = (pretrained / "tokenizer.json").read_bytes()
    monkeypatch.chdir(pretrained / "pretrain")
    after = run_folder("init_from=best.pt", experiment="smoke_sft", name="after")
    assert (after / "tokenizer.json").read_bytes() == tokenizer
    run_folder(f"init_from={pretrained / 'pretrain'}", experiment="smoke_sft")
    result = json.loads((pretrained / "result.json").read_text())
    assert [entry["phase"] for entry in result["phases"]] == ["pretrain", "sft"]


def test_a_file_added_under_an_unfinished_run_is_named_in_words(run_folder: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in "abc":
        write_text(notes / f"{name}.txt", 200)
    own = ("data=text", f"data.files=[{notes}/*.txt]", "model.V=300")
    run_folder("train.total_steps=2", *own)
    (notes / "a.txt").write_text((notes / "a.txt").read_text() + " and more")
    with pytest.raises(CheckpointError, match="different data\ntext: the text has changed"):
        run_folder("train.total_steps=4", *own)
    write_text(notes / "d.txt", 200)
    with pytest.raises(CheckpointError, match="different data\ntext: number of documents 3 -> 4"):
        run_folder("train.total_steps=4", *own)


def test_a_failed_first_attempt_leaves_nothing_in_the_way(run_folder: Run, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", 400)
    own = ["data=text", f"data.files=[{text}]", "data.documents=blank_lines", "model.V=300"]
    with pytest.raises(DataError, match="a sequence and its targets need"):
        run_folder(*own, "model.T=4096")
    folder = run_folder(*own, "resume=never", "model.V=310")
    assert json.loads((folder / "result.json").read_text())["phases"][0]["step"] == 4


def test_a_mixture_gives_each_phase_what_it_reads_and_tells_the_loss_of_each_source(
    run_folder: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="niels_gpt")
    write_text(tmp_path / "a.txt", 400)
    rows = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    notes = f"{{kind:text,name:notes,weight:3,documents:blank_lines,files:[{tmp_path}/a.txt]}}"
    chats = f"{{kind:jsonl,name:chats,files:[{tmp_path}/a.jsonl]}}"
    mixture = [f"data.sources=[{notes},{chats},{{kind:synthetic,size:300}}]", "model.V=300", "model.T=16"]
    said = "val_source=chats has no documents, but pretrain needs some to validate on"
    with pytest.raises(DataError, match=said) as caught:
        run_folder(*mixture, "data.val_source=chats")
    assert "use one of notes, synthetic" in caught.value.hint
    folder = run_folder(*mixture, "sft.data.val_source=chats", experiment="smoke_pipeline")
    assert "pretrain: no documents in chats; left out" in caplog.messages
    for event in metrics(folder / "pretrain"):
        if event["event"] == "val":
            losses = event["by_source"]
            assert list(losses) == ["notes", "synthetic"]
            assert event["loss"] == pytest.approx(0.75 * losses["notes"] + 0.25 * losses["synthetic"])
    result = json.loads((folder / "result.json").read_text())
    assert [entry["step"] for entry in result["phases"]] == [4, 4]


def test_sft_from_random_weights_says_so(run_folder: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="niels_gpt"):
        run_folder(experiment="smoke_sft")
    assert "sft: starts from random weights" in caplog.text


def spoil(path: Path) -> None:
    """Damage a checkpoint, and none that it is another name of."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.unlink()
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    run_folder: Run, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = final(pretrained / "pretrain")
    spoil(pretrained / "pretrain" / "step_0000004.pt")
    (pretrained / "pretrain" / "latest.pt").unlink()
    with caplog.at_level(logging.INFO, logger="niels_gpt"):
        run_folder()
    assert "step_0000004.pt is damaged" in caplog.text and "pretrain: resumed from step 2" in caplog.messages
    assert same(whole, final(pretrained / "pretrain"))


def test_two_runs_on_one_folder_the_second_is_refused_naming_the_first(plan: Plan) -> None:
    loaded = plan()
    Path(loaded[0].dir).mkdir()
    command = [sys.executable, "-c", OWNER, str(Path(loaded[0].dir) / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout and owner.stdout.read(1)
        with pytest.raises(RunFolderInUse, match="in use by process 1 on host"):
            run(loaded)
        owner.kill()
    claim_run_folder(loaded)  # the kernel drops the lock of a killed process
    unlock_folder(loaded[0].dir)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_real_run_saves_and_the_same_command_goes_on(tmp_path: Path, signum: int) -> None:
    command = [
        sys.executable, str(ROOT / "scripts" / "train.py"), "experiment=smoke_pretrain",
        "train.total_steps=100000", "train.eval_every=100000", "train.ckpt_every=100000", "train.log_every=1",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        for line in process.stdout:
            if line.startswith("step"):
                break
        process.send_signal(signum)
        said = process.stdout.read() + process.stderr.read()
        assert process.wait(30) == 128 + signum, said
    folder = tmp_path / "runs" / "smoke_pretrain" / "pretrain"
    step = read_checkpoint(folder / "latest.pt")["step"]
    stopped = f"pretrain: stopped at step {step}, saved; the same command continues from there\n"
    assert said.endswith(stopped) and "error:" not in said and "Traceback" not in said
    log = (folder.parent / "train.log").read_text()
    assert log.endswith(f" INFO pretrain: stopped at step {step}, saved\n") and "Traceback" not in log
    assert metrics(folder)[-1]["step"] == step


def test_a_missing_device_is_refused_before_anything_is_made(run_folder: Run, tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    said = "device=mps is not available on this machine; use device=cpu or device=auto"
    with pytest.raises(NielsError, match=said):
        run_folder("device=mps")
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_no_empty_folder(run_folder: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run_folder(f"init_from={tmp_path / 'missing.pt'}")
    with pytest.raises(DataError):
        run_folder("data=text", f"data.files=[{tmp_path / 'missing.txt'}]")
    assert [path for path, folders, files in os.walk(tmp_path) if not folders and not files] == []


def test_the_data_is_prepared_once_for_all_runs(run_folder: Run, finished_run: Path, cache_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.ids")}
    run_folder("train.B=2", "train.accum_steps=4", "train.total_steps=1")
    assert {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.ids")} == before != {}


def test_a_resumed_run_learns_by_its_own_settings_not_by_those_of_the_checkpoint(
    run_folder: Run, pretrained: Path
) -> None:
    changed = ("train.weight_decay=0.3", "train.betas=[0.8,0.9]", "train.momentum=0.7")
    run_folder("train.total_steps=6", *changed)
    parts = final(pretrained / "pretrain")["optimizer_state"]["parts"]
    matrices, vectors, hidden = (group for part in parts for group in part["param_groups"])
    assert [group["weight_decay"] for group in (matrices, vectors, hidden)] == [0.3, 0.0, 0.3]
    assert [list(group["betas"]) for group in (matrices, vectors)] == [[0.8, 0.9]] * 2
    assert hidden["momentum"] == 0.7
