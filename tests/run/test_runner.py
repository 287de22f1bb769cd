"""A run: resumed it ends as if it had never stopped; nothing is overwritten; a pipeline hands its weights on."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import ROOT, Plan, Run, final, metrics, same, stopped_after

from niels_gpt.errors import CheckpointError, DataError, Interrupted, NielsError, OutOfMemory, RunFolderInUse
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


def test_resume_after_one_step_starts_at_two_with_the_new_settings(run_folder: Run) -> None:
    """Acceptance 6."""
    run_folder("train.total_steps=1")
    seen = []

    def spy(state: Any, *rest: Any) -> Any:
        outcome = optimizer_step(state, *rest)
        seen.append(state.step)
        return outcome

    with mock.patch("train.loop.steps.optimizer_step", spy):
        folder = run_folder("train.total_steps=2", "precision=bf16", "memory=ckpt")
    assert seen == [2]
    saved = read_checkpoint(folder / "pretrain" / "latest.pt")
    assert saved["step"] == 2
    settings = {
        key: saved["train_cfg"][key] for key in ("amp", "amp_dtype", "activation_checkpointing", "total_steps")
    }
    assert settings == {"amp": True, "amp_dtype": "bf16", "activation_checkpointing": True, "total_steps": 2}


def test_a_pipeline_hands_the_best_weights_on_with_a_new_optimizer(run_folder: Run, plan: Plan) -> None:
    folder = run_folder(experiment="smoke_pipeline")
    best = read_checkpoint(folder / "pretrain" / "best.pt")
    second = plan(experiment="smoke_pipeline", name="other")[1]
    captured: dict[str, Any] = {}

    def first_step(state: Any, *rest: Any) -> Any:
        captured.setdefault("weights", {k: v.clone() for k, v in state.model.state_dict().items()})
        captured.setdefault("optimizer", [part["state"] for part in state.optimizer.state_dict()["parts"]])
        return optimizer_step(state, *rest)

    alone = second.model_copy(update={"init_from": str(folder / "pretrain" / "best.pt")})
    with mock.patch("train.loop.steps.optimizer_step", first_step):
        run([alone])
    assert same(captured["weights"], dict(best["model_state"]))
    assert captured["optimizer"] == [{}, {}]
    # the second phase alone, from that checkpoint and with its tokenizer, is the pipeline's second phase
    assert (Path(alone.dir) / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert same(final(Path(alone.dir) / "sft"), final(folder / "sft"))


def test_a_run_folder_holds_what_the_readme_says(run_folder: Run) -> None:
    folder = run_folder(experiment="smoke_pipeline")
    assert {path.name for path in folder.iterdir()} == {
        "pretrain",
        "sft",
        "tokenizer.json",
        "result.json",
        "run.lock",
    }
    for phase in ("pretrain", "sft"):
        names = {path.name for path in (folder / phase).iterdir()}
        assert {"metrics.jsonl", "curves.png", "latest.pt", "best.pt", "step_0000004.pt"} <= names
    result = json.loads((folder / "result.json").read_text())
    assert [entry["phase"] for entry in result["phases"]] == ["pretrain", "sft"]
    assert all((folder / entry["checkpoint"]).exists() for entry in result["phases"])


def test_fewer_steps_than_were_taken_end_with_the_last_one_taken(run_folder: Run) -> None:
    with stopped_after(5), pytest.raises(Interrupted):
        run_folder("train.total_steps=6", "train.eval_every=4")
    folder = run_folder("train.total_steps=4", "train.eval_every=4")
    (entry,) = json.loads((folder / "result.json").read_text())["phases"]
    assert (entry["step"], final(folder / "pretrain")["step"]) == (5, 5)
    assert [event["step"] for event in metrics(folder / "pretrain") if event["event"] == "val"] == [4, 5]


def test_a_run_knows_where_its_weights_came_from_though_it_was_resumed_without_a_word_of_it(
    run_folder: Run,
) -> None:
    begun = f"init_from={run_folder(name='first') / 'pretrain' / 'best.pt'}"
    run_folder(begun, "train.total_steps=2", experiment="smoke_sft")
    run_folder("train.total_steps=3", experiment="smoke_sft")
    folder = run_folder(begun, "train.total_steps=4", experiment="smoke_sft")
    assert final(folder / "sft")["step"] == 4
    with pytest.raises(CheckpointError, match="its init_from is pretrain step"):
        run_folder(f"init_from={folder / 'sft' / 'best.pt'}", "train.total_steps=5", experiment="smoke_sft")


def test_a_complete_run_is_left_as_it_is(run_folder: Run, caplog: pytest.LogCaptureFixture) -> None:
    folder = run_folder(experiment="smoke_pipeline")
    before = {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"
    }
    with (
        caplog.at_level(logging.INFO, logger="niels_gpt"),
        mock.patch.object(run_module, "make_model", side_effect=AssertionError),
    ):
        run_folder(experiment="smoke_pipeline")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for phase in ("pretrain", "sft"):
        assert f"{phase}: complete at step 4, nothing to do" in caplog.text


def test_resume_never_refuses_to_touch_a_run(run_folder: Run) -> None:
    folder = run_folder()
    before = (folder / "pretrain" / "latest.pt").read_bytes()
    with pytest.raises(CheckpointError, match="already holds a run"):
        run_folder("resume=never")
    assert (folder / "pretrain" / "latest.pt").read_bytes() == before


def test_resume_from_a_path_goes_on_exactly_from_there(run_folder: Run) -> None:
    overrides = ["train.total_steps=6", "train.ckpt_every=3", "train.keep_last=9"]
    whole = run_folder(*overrides, name="whole")
    middle = whole / "pretrain" / "step_0000003.pt"
    other = run_folder(*overrides, f"resume={middle}", name="other")
    assert same(final(whole / "pretrain"), final(other / "pretrain"))
    assert min(event["step"] for event in metrics(other / "pretrain")) == 4


def test_a_run_resumed_from_a_path_can_itself_be_stopped_and_gone_on_with(run_folder: Run) -> None:
    overrides = ["train.total_steps=6", "train.ckpt_every=3", "train.keep_last=9"]
    whole = run_folder(*overrides, name="whole")
    path = f"resume={whole / 'pretrain' / 'step_0000003.pt'}"
    with stopped_after(2), pytest.raises(Interrupted):
        run_folder(*overrides, path, name="other")
    assert same(final(whole / "pretrain"), final(run_folder(*overrides, path, name="other") / "pretrain"))


def test_going_back_in_a_run_is_refused_since_it_would_lose_the_later_steps(run_folder: Run) -> None:
    overrides = ["train.total_steps=6", "train.ckpt_every=3", "train.keep_last=9"]
    folder = run_folder(*overrides)
    before = (folder / "pretrain" / "latest.pt").read_bytes()
    with pytest.raises(CheckpointError, match="was completed with resume=None, not "):
        run_folder(*overrides, f"resume={folder / 'pretrain' / 'step_0000003.pt'}")
    assert (folder / "pretrain" / "latest.pt").read_bytes() == before


def test_a_checkpoint_of_another_phase_is_refused_with_the_way_out(run_folder: Run) -> None:
    folder = run_folder()
    with pytest.raises(
        CheckpointError, match=r"/pretrain/best\.pt: its phase is pretrain, but this run's is sft"
    ) as caught:
        run_folder(f"resume={folder / 'pretrain' / 'best.pt'}", experiment="smoke_sft", name="other")
    assert "init_from=" in caught.value.hint


def test_another_model_on_an_existing_run_is_refused(run_folder: Run) -> None:
    run_folder("train.total_steps=1")
    said = r"/pretrain/step_0000001\.pt and this run have different models:\nmodel\.C=32, not 64"
    with pytest.raises(CheckpointError, match=said):
        run_folder("train.total_steps=2", "model.C=64")


def test_more_pretraining_under_a_finished_sft_is_refused_not_ignored(run_folder: Run) -> None:
    folder = run_folder("train.base_lr=0.01", experiment="smoke_pipeline")
    best = (folder / "pretrain" / "best.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"/pretrain has 4 of 8 steps, but sft has already started from its"):
        run_folder(
            "train.base_lr=0.01", "train.total_steps=8", "sft.train.total_steps=5", experiment="smoke_pipeline"
        )
    assert (folder / "pretrain" / "best.pt").read_bytes() == best


def test_a_pipeline_whose_result_is_lost_writes_it_anew(run_folder: Run) -> None:
    folder = run_folder(experiment="smoke_pipeline")
    states = [final(folder / phase) for phase in ("pretrain", "sft")]
    entries = json.loads((folder / "result.json").read_text())["phases"]
    (folder / "result.json").write_bytes(b"")
    run_folder(experiment="smoke_pipeline")
    assert same(states, [final(folder / phase) for phase in ("pretrain", "sft")])
    again = json.loads((folder / "result.json").read_text())["phases"]
    for entry in (*entries, *again):
        del entry["seconds"]
    assert again == entries


def test_a_phase_whose_checkpoints_are_gone_is_not_begun_anew_under_the_next(run_folder: Run) -> None:
    folder = run_folder(experiment="smoke_pipeline")
    for path in (folder / "pretrain").glob("*.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has 0 of 4 steps, but sft has already started") as caught:
        run_folder(experiment="smoke_pipeline")
    assert caught.value.hint.startswith("use phase=sft alone")
    run_folder("phase=sft", experiment="smoke_pipeline")


def test_a_damaged_best_of_a_finished_phase_does_not_stop_the_next(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_folder(experiment="smoke_pretrain")
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


def test_phases_that_are_run_apart_keep_each_others_results(run_folder: Run) -> None:
    folder = run_folder()
    run_folder(f"init_from={folder / 'pretrain'}", experiment="smoke_sft")
    result = json.loads((folder / "result.json").read_text())
    assert [entry["phase"] for entry in result["phases"]] == ["pretrain", "sft"]


def test_weights_to_start_from_are_found_from_within_their_run(
    run_folder: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_folder()
    monkeypatch.chdir(before / "pretrain")
    after = run_folder("init_from=best.pt", experiment="smoke_sft", name="after")
    assert (after / "tokenizer.json").read_bytes() == (before / "tokenizer.json").read_bytes()


def test_other_data_under_an_unfinished_run_is_refused(run_folder: Run) -> None:
    run_folder("train.total_steps=2")
    for change, said in (("val_fraction=0.1", "val_fraction 0.05 -> 0.1"), ("size=90", "size 2000 -> 90")):
        with pytest.raises(CheckpointError) as caught:
            run_folder("train.total_steps=4", f"data.{change}")
        first, second, *_ = str(caught.value).splitlines()
        assert first.endswith("/pretrain/step_0000002.pt was trained on other data")
        assert second == f"synthetic: {said}"
        assert re.search(r"init_from=\S+/pretrain/step_0000002\.pt name=\.\.\.$", caught.value.hint)


def test_a_file_added_under_an_unfinished_run_is_named_in_words(run_folder: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in "abc":
        write_text(notes / f"{name}.txt", 200)
    own = ("data=text", f"data.files=[{notes}/*.txt]", "model.V=300")
    run_folder("train.total_steps=2", *own)
    (notes / "a.txt").write_text((notes / "a.txt").read_text() + " and more")
    with pytest.raises(CheckpointError, match="other data\ntext: the text has changed"):
        run_folder("train.total_steps=4", *own)
    write_text(notes / "d.txt", 200)
    with pytest.raises(CheckpointError, match="other data\ntext: number of documents 3 -> 4"):
        run_folder("train.total_steps=4", *own)


def test_another_optimizer_under_an_unfinished_run_is_refused(run_folder: Run) -> None:
    run_folder("train.total_steps=2", "optim=adamw")
    with pytest.raises(
        CheckpointError, match=r"/pretrain/step_0000002\.pt: its optim is adamw, but this run's is muon"
    ):
        run_folder("train.total_steps=4")


def test_a_failed_first_attempt_leaves_nothing_in_the_way(run_folder: Run, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", 400)
    own = ["data=text", f"data.files=[{text}]", "data.documents=blank_lines", "model.V=300"]
    with pytest.raises(DataError, match="a sequence with its targets takes"):
        run_folder(*own, "model.T=4096")
    folder = run_folder(*own, "resume=never", "model.V=310")
    assert json.loads((folder / "result.json").read_text())["phases"][0]["step"] == 4


def test_a_mixture_gives_each_phase_what_it_reads(run_folder: Run, tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", 400)
    rows = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    notes = f"{{kind:text,name:notes,documents:blank_lines,files:[{tmp_path}/a.txt]}}"
    chats = f"{{kind:jsonl,name:chats,files:[{tmp_path}/a.jsonl]}}"
    overrides = [f"data.sources=[{notes},{chats},{{kind:synthetic,size:300}}]", "model.V=300"]
    folder = run_folder(
        *overrides, "data.val_source=notes", "sft.data.val_source=chats", experiment="smoke_pipeline"
    )
    result = json.loads((folder / "result.json").read_text())
    assert [entry["step"] for entry in result["phases"]] == [4, 4]


def test_validation_samples_each_source_and_tells_its_loss(run_folder: Run, tmp_path: Path) -> None:
    """Not the first documents in file order; by source in metrics, in the log and in the report."""
    notes = write_text(tmp_path / "notes.txt", 400)
    source = f"{{kind:text,name:notes,weight:3,documents:blank_lines,files:[{notes}]}}"
    mixture = f"data.sources=[{source},{{kind:synthetic,size:300}}]"
    folder = run_folder(mixture, "model.V=300", "model.T=16", "train.eval_sequences=8")
    for event in metrics(folder / "pretrain"):
        if event["event"] == "val":
            losses = event["by_source"]
            assert list(losses) == ["notes", "synthetic"]
            assert event["loss"] == pytest.approx(0.75 * losses["notes"] + 0.25 * losses["synthetic"])


def test_a_source_without_what_a_phase_reads_is_named(
    run_folder: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="niels_gpt")
    rows = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(200)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = f"{{kind:jsonl,name:chats,files:[{tmp_path}/chats.jsonl]}}"
    mixture = f"data.sources=[{chats},{{kind:synthetic,size:300}}]"
    with pytest.raises(
        DataError, match="val_source=chats has no documents, but pretrain needs some to validate on"
    ) as caught:
        run_folder(mixture, "data.val_source=chats")
    assert "use one of synthetic" in caught.value.hint
    run_folder(mixture)
    assert "pretrain: no documents in chats; left out" in caplog.messages


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
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["train.total_steps=6", "train.keep_last=9", "train.ckpt_every=1", "train.eval_every=6"]
    whole = final(run_folder(*overrides) / "pretrain")
    folder = run_folder(*overrides) / "pretrain"
    (folder.parent / "result.json").unlink()
    spoil(folder / "step_0000006.pt")
    with caplog.at_level(logging.WARNING, logger="niels_gpt"):
        run_folder(*overrides)
    assert "step_0000006.pt is damaged" in caplog.text
    assert same(whole, final(folder))


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


def test_starting_a_run_gives_the_line_that_says_what_will_happen(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="niels_gpt"):
        run_folder("memory=ckpt", "device=cpu")
    expected = (
        "pretrain: device=cpu amp=off amp_dtype=fp16 activation_checkpointing=true "
        "micro_B=4 accum_steps=2 effective_batch=8 "
    )
    assert any(message.startswith(expected) for message in caplog.messages)


def test_a_missing_device_is_refused_before_anything_is_made(run_folder: Run, tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    said = "device=mps was asked for, but this machine has none; use device=cpu or device=auto"
    with pytest.raises(NielsError, match=said):
        run_folder("device=mps")
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_no_empty_folder(run_folder: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run_folder(f"init_from={tmp_path / 'missing.pt'}")
    with pytest.raises(DataError):
        run_folder("data=text", f"data.files=[{tmp_path / 'missing.txt'}]")
    assert [path for path, folders, files in os.walk(tmp_path) if not folders and not files] == []


def test_the_data_is_prepared_once_for_all_runs(run_folder: Run, cache_dir: Path) -> None:
    run_folder(name="first")
    before = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.ids")}
    started = time.monotonic()
    run_folder("train.B=2", "train.accum_steps=4", name="second")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert time.monotonic() - started < 60
    assert os.listdir(cache_dir)


def test_running_out_of_memory_says_what_to_try(run_folder: Run) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("Invalid buffer size: 19.07 GiB")

    with mock.patch("train.loop.steps.optimizer_step", full), pytest.raises(OutOfMemory) as caught:
        run_folder()
    assert "train.B=2 train.accum_steps=4 (the same training)" in caught.value.hint


def test_a_change_of_precision_under_a_run_is_said(run_folder: Run, caplog: pytest.LogCaptureFixture) -> None:
    run_folder("train.total_steps=1", "precision=fp16")
    with caplog.at_level(logging.WARNING, logger="niels_gpt"):
        run_folder("train.total_steps=2", "precision=bf16")
    assert "pretrain: changed setting: train.amp_dtype fp16 -> bf16" in caplog.messages


def test_a_change_of_dropout_under_a_run_is_said(run_folder: Run, caplog: pytest.LogCaptureFixture) -> None:
    run_folder("train.total_steps=1", "model.dropout=0")
    with caplog.at_level(logging.WARNING, logger="niels_gpt"):
        run_folder("train.total_steps=2", "model.dropout=0.5")
    assert "pretrain: changed setting: model.dropout 0.0 -> 0.5" in caplog.messages


def test_a_resumed_run_learns_by_its_own_settings_not_by_those_of_the_checkpoint(run_folder: Run) -> None:
    changed = ("train.weight_decay=0.3", "train.betas=[0.8,0.9]", "train.momentum=0.7")
    run_folder("optim=muon")
    parts = final(run_folder("optim=muon", "train.total_steps=6", *changed) / "pretrain")["optimizer_state"][
        "parts"
    ]
    matrices, vectors, hidden = (group for part in parts for group in part["param_groups"])
    assert [group["weight_decay"] for group in (matrices, vectors, hidden)] == [0.3, 0.0, 0.3]
    assert [list(group["betas"]) for group in (matrices, vectors)] == [[0.8, 0.9]] * 2
    assert hidden["momentum"] == 0.7


def test_a_run_ends_with_its_results_and_what_to_do_next(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="niels_gpt"):
        folder = run_folder(experiment="smoke_pipeline")
    end = caplog.messages[next(n for n, line in enumerate(caplog.messages) if line.startswith("finished in")) :]
    (loss,) = {
        event["loss"] for event in metrics(folder / "sft") if event["event"] == "val" and event["step"] == 4
    }
    assert re.fullmatch(rf"finished in \d+ s: {folder}", end[0])
    assert end[2].startswith(f"  sft         validation loss {loss:.4f}, ")
    assert end[3:5] == [
        f"  talk to it  python scripts/sample.py {folder} --chat",
        "  train on    the same command with sft.train.total_steps=8",
    ]
    assert "smoke test" in end[5]
    run_folder("sft.train.total_steps=8", experiment="smoke_pipeline")
    assert final(folder / "sft")["step"] == 8
