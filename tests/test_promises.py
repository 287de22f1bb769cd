"""The promises of niels_gpt, each with the test that holds it. Read this file first."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import CONF, Compose, Plan, Run, carry_out, final, metrics, same, stopped_after
from support.fake_loggers import install_fakes, set_behaviour
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError, Interrupted
from niels_gpt.model.gpt import GPT
from niels_gpt.weights.checkpoint import CHECKPOINT_KEYS, read_checkpoint
from train.config import TrainCfgSchema, load_plan
from train.loop.logger import RunLogger
from train.loop.optim import lr_at, set_lr
from train.loop.steps import optimizer_step
from train.run import run

PHASES = ("pretrain", "sft")  # in SFT only the assistant's words are targets
SPLITS = ((8, 1), (4, 2), (2, 4), (1, 8))  # B and accum_steps of one and the same step


@contextmanager
def recorded_steps() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Record the tokens, the loss and the gradient norm of each step."""
    steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(state: Any, cfg: Any, source: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        tokens = source.draw(state.sequences, cfg.effective_batch).x
        loss, norm = optimizer_step(state, cfg, source, *rest)
        steps.append((tokens, loss, norm))
        return loss, norm

    with mock.patch("train.loop.steps.optimizer_step", record):
        yield steps


# 1. A step is one optimizer update. Evaluation, checkpoints, logging, the schedule and resuming count in steps.


@pytest.mark.parametrize("memory", ["off", "ckpt"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_step_is_one_update_one_clip_and_one_learning_rate(plan: Plan, phase: str, memory: str) -> None:
    overrides = (f"memory={memory}", "optim=adamw", "train.total_steps=2", "train.accum_steps=3")
    loaded = plan(*overrides, experiment=f"smoke_{phase}")
    with (
        mock.patch.object(AdamW, "step", autospec=True, side_effect=AdamW.step) as updates,
        mock.patch("train.loop.steps.clip_grad_norm_", wraps=clip_grad_norm_) as clips,
        mock.patch("train.loop.steps.set_lr", wraps=set_lr) as schedule,
        mock.patch.object(Tensor, "backward", autospec=True, side_effect=Tensor.backward) as microbatches,
    ):
        (result,) = run(loaded)
    assert updates.call_count == clips.call_count == schedule.call_count == result.step == 2
    assert microbatches.call_count == 2 * 3
    assert [call.args[1] for call in schedule.call_args_list] == [lr_at(n, loaded[0].train) for n in range(2)]


def test_logging_evaluation_and_checkpoints_count_steps_and_come_at_the_last_one(run_folder: Run) -> None:
    every = ("train.log_every=3", "train.eval_every=2", "train.ckpt_every=4", "train.keep_last=9")
    folder = run_folder("train.total_steps=7", "train.accum_steps=3", *every) / "pretrain"
    events = metrics(folder)
    assert [event["step"] for event in events if event["event"] == "train"] == [3, 6, 7]
    assert {"step_0000004.pt", "step_0000007.pt"} <= {path.name for path in folder.glob("step_*.pt")}
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "val"}
    assert list(losses) == [2, 4, 6, 7]
    best = read_checkpoint(folder / "best.pt")
    assert best["best_val_loss"] == min(losses.values()) == losses[best["step"]]


# 2. The tokens and the dropout of a step are a function of the seed and the step's number alone.


@pytest.mark.parametrize("memory", ["off", "ckpt"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    run_folder: Run, phase: str, memory: str
) -> None:
    overrides = ("model.dropout=0.2", f"memory={memory}", "train.total_steps=7", "train.log_every=2")
    straight = run_folder(*overrides, experiment=f"smoke_{phase}", name="straight") / phase
    for steps in (1, 2):  # stopped after the first, and after two more: between lines, whose losses are means
        with stopped_after(steps), pytest.raises(Interrupted) as caught:
            run_folder(*overrides, experiment=f"smoke_{phase}")
        assert caught.value.exit_code == 143
    resumed = run_folder(*overrides, experiment=f"smoke_{phase}") / phase
    assert same(final(straight), final(resumed))
    assert metrics(straight) == metrics(resumed)


def test_a_kill_loses_only_the_steps_since_the_last_checkpoint(run_folder: Run, tmp_path: Path) -> None:
    overrides = ("train.total_steps=6", "train.ckpt_every=2", "train.eval_every=6", "train.log_every=3")
    straight = run_folder(*overrides, name="straight") / "pretrain"

    def kill_in_step_4(state: Any, *rest: Any) -> Any:
        if state.step == 3:
            raise KeyboardInterrupt
        return optimizer_step(state, *rest)

    with mock.patch("train.loop.steps.optimizer_step", kill_in_step_4), suppress(KeyboardInterrupt):
        run_folder(*overrides)
    assert metrics(tmp_path / "run" / "pretrain")[-1]["step"] == 3
    with recorded_steps() as repeated:
        resumed = run_folder(*overrides) / "pretrain"
    assert len(repeated) == 4
    assert same(final(straight), final(resumed))
    assert metrics(straight) == metrics(resumed)


def test_each_epoch_visits_every_training_sequence_once_in_another_order(run_folder: Run) -> None:
    own = ("data.size=60", "model.V=300", "train.B=1", "train.accum_steps=1", "train.total_steps=120")
    with recorded_steps() as steps:
        run_folder(*own, *(f"train.{what}_every=120" for what in ("eval", "ckpt", "log")))
    rows = [tuple(tokens[0].tolist()) for tokens, _, _ in steps]
    epoch = len(set(rows))
    assert len(rows) >= 2 * epoch > 2
    first, second = rows[:epoch], rows[epoch : 2 * epoch]
    assert sorted(first) == sorted(second) and first != second


def test_a_checkpoint_stores_no_random_state(run_folder: Run) -> None:
    saved = read_checkpoint(run_folder("model.dropout=0.2") / "pretrain" / "latest.pt")
    assert list(saved) == ["model_cfg", "train_cfg", "model_state", "optimizer_state", "step", "best_val_loss"]
    assert not any("rng" in key or "random" in key for key in saved["train_cfg"])


@pytest.mark.parametrize(
    ("phase", "asked", "isolated"),
    [("sft", "null", True), ("sft", "false", False), ("pretrain", "null", False), ("pretrain", "true", True)],
)
def test_attention_stays_within_a_dialogue_in_sft_and_else_as_asked(
    run_folder: Run, phase: str, asked: str, isolated: bool
) -> None:
    """The tests here that run SFT therefore hold with it, and those of pretraining without it."""
    seen: dict[bool, set[bool]] = {True: set(), False: set()}  # in training, in evaluation
    compute_loss = GPT.loss

    def record(model: GPT, ids: Tensor, targets: Tensor, n: float, segments: Tensor | None) -> Tensor:
        several = segments is not None and bool((segments[:, 0] != segments[:, 40]).any())
        seen[model.training].add(several)
        return compute_loss(model, ids, targets, n, segments)

    with mock.patch.object(GPT, "loss", record):
        run_folder(f"data.isolate={asked}", "train.total_steps=2", experiment=f"smoke_{phase}")
    assert seen == {True: {isolated}, False: {isolated}}


# 3. The loss of a step is the exact mean over its targets, however B and accum_steps split it.


@pytest.mark.parametrize("phase", PHASES)
def test_the_split_into_microbatches_changes_nothing_but_rounding(run_folder: Run, phase: str) -> None:
    outcomes = []
    for B, accum_steps in SPLITS:
        split = (f"train.B={B}", f"train.accum_steps={accum_steps}", "train.total_steps=3", "train.grad_clip=1e9")
        with recorded_steps() as steps:
            folder = run_folder(*split, "optim=adamw", experiment=f"smoke_{phase}", name=f"B{B}")
        outcomes.append((steps, final(folder / phase)["model_state"]))
    expected, weights = outcomes[0]
    for steps, others in outcomes[1:]:
        for (tokens, *facts), (same_tokens, *other_facts) in zip(expected, steps, strict=True):
            assert torch.equal(tokens, same_tokens)
            torch.testing.assert_close(other_facts, facts, rtol=1e-5, atol=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4)


# 4. Recomputing activations gives the same loss and gradients, dropout included; to the bit on the CPU.


def test_memory_ckpt_is_the_same_training_to_the_bit(run_folder: Run) -> None:
    folders = []
    for memory in ("off", "ckpt"):
        with mock.patch("niels_gpt.model.gpt.checkpoint", wraps=checkpoint) as recomputed:
            own = (f"memory={memory}", "model.dropout=0.2")
            folders.append(run_folder(*own, experiment="smoke_pipeline", name=memory))
        assert (recomputed.call_count > 0) is (memory == "ckpt")
        assert all(call.kwargs["use_reentrant"] is False for call in recomputed.call_args_list)
    for phase in ("pretrain", "sft"):
        assert same(final(folders[0] / phase), final(folders[1] / phase))
        assert metrics(folders[0] / phase) == metrics(folders[1] / phase)


# 5. On the CPU precision=off, fp16 and bf16 are the same program.


def test_every_precision_is_the_same_program_on_the_cpu(run_folder: Run) -> None:
    phases = [run_folder(f"precision={p}", "device=cpu", name=p) / "pretrain" for p in ("off", "fp16", "bf16")]
    for phase in phases[1:]:
        assert same(final(phase), final(phases[0]))
        assert metrics(phase) == metrics(phases[0])


# 6. Asking for a trace turns recomputation off for that call and changes no logit beyond rounding.


def test_a_trace_changes_no_logit_and_recomputes_nothing() -> None:
    cfg = ModelCfg(V=300, T=16, C=32, L=3, H=4, d_ff=64)
    network = GPT(cfg, activation_checkpointing=True).train()
    torch.nn.init.normal_(network.head_weight)
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    trace: list[Tensor] = []
    with mock.patch("niels_gpt.model.gpt.checkpoint", wraps=checkpoint) as recomputed:
        traced = network(ids, trace)
        assert recomputed.call_count == 0
        torch.testing.assert_close(traced, network(ids), rtol=1e-5, atol=1e-6)
        assert recomputed.call_count == cfg.L
    assert len(trace) == cfg.L


# 7. A checkpoint that is visible under its name is complete, and loading one executes nothing.


def test_a_save_that_fails_leaves_the_run_as_it_was(run_folder: Run, tmp_path: Path) -> None:
    every = ("train.ckpt_every=1", "train.eval_every=9", "train.total_steps=4")

    def write_half(content: object, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt  # as a kill would, in the midst of it

    with stopped_after(2), pytest.raises(Interrupted):
        run_folder(*every)
    with mock.patch.object(torch, "save", write_half), suppress(KeyboardInterrupt):
        run_folder(*every)
    phase = tmp_path / "run" / "pretrain"
    assert {read_checkpoint(path)["step"] for path in phase.glob("[!.]*.pt")} == {1, 2}
    assert final(run_folder(*every) / "pretrain")["step"] == 4


def test_loading_a_checkpoint_executes_nothing_that_is_in_it(run_folder: Run, tmp_path: Path) -> None:
    witness = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(witness),)

    torch.save(dict.fromkeys(CHECKPOINT_KEYS, Payload()), tmp_path / "saved.pt")
    with pytest.raises(CheckpointError, match=r"saved\.pt cannot be read"):
        run_folder(f"init_from={tmp_path / 'saved.pt'}")
    assert not witness.exists()


# 8. Every shipped experiment and every option of every group composes and validates.

OPTIONS = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra", "sweep"))
ONLY_THE_USER_KNOWS = {
    "data=text": ["phase=pretrain", "data.files=[a.txt]"],
    "data=jsonl": ["data.files=[a.jsonl]"],
    "data=hf": ["data.repo=a/b"],
    "batch=iso": ["global_B=8"],
}


@pytest.mark.parametrize("option", [f"{path.parent.name}={path.stem}" for path in OPTIONS])
def test_every_option_and_experiment_composes_and_validates(composed: Compose, option: str) -> None:
    assert load_plan(composed(option, *ONLY_THE_USER_KNOWS.get(option, [])))


def test_a_plain_run_has_the_defaults_of_the_schema(composed: Compose) -> None:
    train = load_plan(composed())[0].train
    assert train == TrainCfgSchema()
    assert (train.amp, train.amp_dtype, train.activation_checkpointing) == (True, "fp16", False)


# 9. Nothing that watches a run changes it.


def test_logging_drawing_and_samples_change_no_bit(plan: Plan, run_folder: Run) -> None:
    own = ("model.dropout=0.2", "train.log_every=1")
    watched = carry_out(plan(*own, experiment="smoke_pipeline", name="watched"))
    silent = dict.fromkeys(("log_step", "log_evaluation", "advance", "sync"), mock.DEFAULT)
    with mock.patch.multiple(RunLogger, **silent):
        alone = run_folder("model.dropout=0.2", "train.log_every=3", experiment="smoke_pipeline", name="alone")
    assert metrics(watched / "sft") and not metrics(alone / "sft")
    for phase in ("pretrain", "sft"):
        assert same(final(watched / phase), final(alone / phase))


def test_no_logger_changes_or_stops_a_run(
    run_folder: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loggers that block are in tests/loop/loggers, the real ones too."""
    told, own = install_fakes(tmp_path, monkeypatch), ("model.dropout=0.2", "train.log_every=1")
    alone = run_folder(*own, name="alone") / "pretrain"
    for how, hears in (("works", True), ("raises", False), ("full", False), ("dies", True)):
        set_behaviour(tmp_path, how)
        before = len(told())
        watched = run_folder(*own, "logger=[trackio,wandb]", name=how) / "pretrain"
        assert (len(told()) > before) is hears
        assert same(final(watched), final(alone))
        assert metrics(watched) == metrics(alone)
