"""A run: resumed it ends as if it had never stopped; nothing is overwritten; a pipeline hands its weights on."""

import fcntl
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Plan, Run, carry_out, final, metrics, same, stopped_after
from support.processes import cli

from niels_gpt.errors import CheckpointError, DataError, Interrupted, NielsError, RunFolderInUse
from niels_gpt.weights.checkpoint import read_checkpoint
from train.loop.steps import optimizer_step
from train.run import run
from train.run import runner as run_module


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
    caplog.set_level(logging.INFO, logger="niels_gpt")
    changed = ("precision=bf16", "memory=ckpt", "model.dropout=0.5", "device=cpu")
    folder = run_folder("train.total_steps=2", *changed)
    saved = read_checkpoint(folder / "pretrain" / "latest.pt")
    assert saved["step"] == 2 and "pretrain: resumed from step 1" in caplog.messages
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
        run_folder("data.verify=true", experiment="smoke_pipeline")  # which decides nothing
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for phase in ("pretrain", "sft"):
        assert f"{phase}: complete at step 4, nothing to do" in caplog.messages
    end = caplog.messages[next(n for n, line in enumerate(caplog.messages) if line.startswith("finished in")) :]
    (loss,) = {e["loss"] for e in metrics(copied_run / "sft") if e["event"] == "val" and e["step"] == 4}
    assert re.fullmatch(rf"finished in \d+ s: {copied_run}", end[0])
    assert end[2].startswith(f"  sft         validation loss {loss:.4f}, ")
    assert end[3:5] == [
        f"  talk to it  niels_gpt sample {copied_run} --chat",
        "  train more  the same command with sft.train.total_steps=8",
    ]
    assert "smoke test" in end[5]
    run_folder("sft.train.total_steps=8", experiment="smoke_pipeline")
    assert final(copied_run / "sft")["step"] == 8


def test_sft_alone_advises_the_setting_that_trains_more(run_folder: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="niels_gpt")
    run_folder("data.size=200", "sft.train.total_steps=2", experiment="smoke_sft")
    (advice,) = [line for line in caplog.messages if "train more" in line]
    run = run_folder("data.size=200", "sft.train.total_steps=2", advice.split()[-1], experiment="smoke_sft")
    assert final(run / "sft")["step"] == 4


def test_resume_from_a_path_goes_on_exactly_from_there(run_folder: Run) -> None:
    overrides = ["train.total_steps=6", "train.ckpt_every=3", "train.keep_last=9"]
    whole = run_folder(*overrides, name="whole")
    middle = whole / "pretrain" / "step_0000003.pt"
    other = run_folder(*overrides, f"resume={middle}", name="other")
    assert same(final(whole / "pretrain"), final(other / "pretrain"))
    assert min(event["step"] for event in metrics(other / "pretrain")) == 4


UNFIT = {
    "model.C=64": "have different models:\nmodel.C=32, not 64",
    "optim=adamw": "/pretrain/step_0000004.pt: its optim is muon, but this run's is adamw",
    "data.val_fraction=0.1": "was trained on different data\nsynthetic: val_fraction 0.05 -> 0.1\n",
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
    if change.startswith("data."):
        assert re.search(r"init_from=\S+/pretrain/step_0000004\.pt name=\.\.\.$", caught.value.hint)
    assert {path: path.read_bytes() for path in pretrained.glob("pretrain/*.pt")} == before


def test_what_would_undo_a_finished_pipeline_is_refused(run_folder: Run, copied_run: Path) -> None:
    phase = copied_run / "pretrain"
    before = {path: path.read_bytes() for path in phase.glob("*.pt")}
    with pytest.raises(CheckpointError, match="was completed with resume=null, not "):
        run_folder(f"resume={phase / 'step_0000002.pt'}")
    with pytest.raises(CheckpointError, match=r"/pretrain has 4 of 8 steps, but sft has already started from its"):
        run_folder("train.total_steps=8", "sft.train.total_steps=5", experiment="smoke_pipeline")
    assert {path: path.read_bytes() for path in phase.glob("*.pt")} == before
    for path in before:
        path.unlink()
    with pytest.raises(CheckpointError, match="has 0 of 4 steps, but sft has already started") as caught:
        run_folder(experiment="smoke_pipeline")
    assert caught.value.hint.startswith("use phase=sft alone")
    run_folder("phase=sft", experiment="smoke_pipeline")


def test_a_checkpoint_of_another_phase_is_refused_with_the_way_out(run_folder: Run, finished_run: Path) -> None:
    said = r"/pretrain/best\.pt: its phase is pretrain, but this run's is sft"
    with pytest.raises(CheckpointError, match=said) as caught:
        run_folder(f"resume={finished_run / 'pretrain' / 'best.pt'}", experiment="smoke_sft")
    assert "init_from=" in caught.value.hint


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


def test_a_damaged_best_of_a_finished_phase_does_not_stop_the_next(
    run_folder: Run, copied_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(copied_run / "sft")
    best, last = copied_run / "pretrain" / "best.pt", final(copied_run / "pretrain")
    for steps, said in ((2, "replaced by step 4"), (4, "sft resumes from its own checkpoint")):
        best.unlink()
        best.write_bytes(b"damaged")
        run_folder(f"sft.train.total_steps={steps}", experiment="smoke_pipeline")
        assert re.search(rf"/best\.pt cannot be read .*; {said}$", caplog.text, re.M)
        if steps == 2:
            assert same(read_checkpoint(best)["model_state"], last["model_state"])
    assert final(copied_run / "sft")["step"] == 4


def test_a_phase_that_is_run_apart_finds_its_weights_from_within_and_keeps_the_other_result(
    run_folder: Run, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder()
    tokenizer = (pretrained / "tokenizer.json").read_bytes()
    monkeypatch.chdir(pretrained / "pretrain")
    after = run_folder("init_from=best.pt", experiment="smoke_sft", name="after")
    assert (after / "tokenizer.json").read_bytes() == tokenizer
    with pytest.raises(
        CheckpointError, match=r"model\.V=300, but the tokenizer of best\.pt has \d+ entries$"
    ) as caught:
        run_folder("init_from=best.pt", "model.V=300", experiment="smoke_sft", name="other")
    assert "name=" not in caught.value.hint
    run_folder(f"init_from={pretrained / 'pretrain'}", experiment="smoke_sft")
    result = json.loads((pretrained / "result.json").read_text())
    assert [entry["phase"] for entry in result["phases"]] == ["pretrain", "sft"]


def test_a_file_added_under_an_unfinished_run_is_named_in_words(run_folder: Run, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", 600)
    own = ("data=text", f"data.files=[{tmp_path}/*.txt]", "model.V=300", "data.documents=blank_lines")
    run_folder("train.total_steps=2", *own)
    text.write_text(text.read_text() + " and more")
    for files in (f"{tmp_path}/*.txt", f"{tmp_path}/./*.txt"):
        with pytest.raises(
            CheckpointError, match=r"different data\n(text: files .*\n)?text: the text has changed"
        ):
            run_folder("train.total_steps=4", *own, f"data.files=[{files}]")
    write_text(tmp_path / "b.txt", 1)
    with pytest.raises(CheckpointError, match="different data\ntext: number of documents 600 -> 601"):
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


def test_two_runs_on_one_folder_the_second_is_refused_naming_the_first(plan: Plan) -> None:
    loaded = plan()
    Path(loaded[0].dir).mkdir()
    with (Path(loaded[0].dir) / "run.lock").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        print("process 1 on host", file=owner, flush=True)
        with pytest.raises(RunFolderInUse, match="in use by process 1 on host"):
            run(loaded)
    carry_out(loaded)


def stop_after_two_steps() -> None:
    stopped_after(2).start()


def test_a_signal_to_a_command_saves_and_says_that_the_same_command_goes_on(
    tmp_path: Path, cache_dir: Path
) -> None:
    arguments = ["experiment=smoke_pretrain", f"data.cache_dir={cache_dir}"]
    done = cli(*arguments, cwd=tmp_path, before=stop_after_two_steps)
    assert done.returncode == 143
    said = "pretrain: stopped at step 2, saved"
    assert f"{done.stdout}{done.stderr}".endswith(f"\n{said}; the same command continues from there\n")
    assert "error:" not in done.stderr and "Traceback" not in done.stderr
    log = (tmp_path / "runs" / "smoke_pretrain" / "train.log").read_text()
    assert log.endswith(f" INFO {said}\n") and "Traceback" not in log


def test_a_missing_device_is_refused_before_anything_is_made(run_folder: Run, tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    said = "device=mps is not available on this machine"
    with pytest.raises(NielsError, match=said):
        run_folder("device=mps")
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_no_empty_folder(run_folder: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run_folder(f"init_from={tmp_path / 'missing.pt'}")
    with pytest.raises(DataError):
        run_folder("data=text", f"data.files=[{tmp_path / 'missing.txt'}]")
    assert [path for path, folders, files in os.walk(tmp_path) if not folders and not files] == []


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


def test_a_note_with_too_little_to_validate_on_names_the_share_that_is_enough(
    run_folder: Run, tmp_path: Path
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"the number {n} is {n % 7} and {n * n}" for n in range(100)))
    own = ["data=text", f"data.files={text}", "data.tokenizer=bytes", "model.V=256", "model.T=256"]
    with pytest.raises(DataError, match="text, val split: the text has") as caught:
        run_folder(*own)
    named = re.match(r"use (data\.val_fraction=\S+), add more text", caught.value.hint)
    assert named
    run_folder(*own, named[1])
