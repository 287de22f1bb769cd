"""The loop: a step is one optimizer update; losses are exact means; gradients are clipped over a step."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Run, same
from data.test_batches import T, dialogues, documents
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import ChatStream, Source, TokenStream
from niels_gpt.loss import head_loss
from niels_gpt.model.gpt import GPT
from train.artifacts.checkpointing import TrainState
from train.config.schema import TrainCfgSchema
from train.hardware.memory_tracker import LiveBytes
from train.loop import steps as train_loop
from train.loop.evaluate import allocate_sequences, evaluate
from train.loop.logger import RunLogger
from train.loop.optim import make_optimizer

CFG = ModelCfg(V=256, T=T, C=16, L=2, H=2, d_ff=32, tie_embeddings=True)
SOURCES: dict[str, Source] = {
    "pretrain": TokenStream(documents(250), T, 1),
    "sft": ChatStream(dialogues([3, 9, 4, 5, 2, 7, 6, 8] * 4), T, 1),
}


def fresh(**settings: object) -> tuple[TrainState, TrainCfgSchema]:
    cfg = TrainCfgSchema.model_validate({"optim": "adamw", "grad_clip": 1e9, **settings})
    torch.manual_seed(0)
    model = GPT(CFG)
    return TrainState(model, make_optimizer(model, cfg)), cfg


def step(state: TrainState, cfg: TrainCfgSchema, source: Source) -> tuple[Tensor, Tensor]:
    return train_loop.optimizer_step(state, cfg, source, nullcontext, 1e-3)


def test_the_loss_of_a_step_is_the_mean_over_all_its_targets() -> None:
    state, cfg = fresh(B=2, accum_steps=3)
    x, y, _ = SOURCES["sft"].draw(0, 6)
    expected = torch.nn.functional.cross_entropy(state.model(x).flatten(0, 1), y.flatten())
    assert step(state, cfg, SOURCES["sft"])[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_autocast_surrounds_forward_and_loss_of_each_microbatch_and_nothing_else() -> None:
    events: list[str] = []

    @contextmanager
    def autocast() -> Iterator[None]:
        events.append("enter")
        yield
        events.append("exit")

    def note_call(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            events.append(name)
            return function(*arguments)

        return call

    state, cfg = fresh(B=2, accum_steps=2)
    state.model.embedding.register_forward_pre_hook(lambda *_: events.append("forward"))
    with (
        mock.patch("niels_gpt.model.gpt.head_loss", note_call("loss", head_loss)),
        mock.patch("train.loop.steps.clip_grad_norm_", note_call("clip", clip_grad_norm_)),
        mock.patch.object(Tensor, "backward", note_call("backward", Tensor.backward)),
        mock.patch.object(state.optimizer, "step", note_call("update", state.optimizer.step)),
    ):
        train_loop.optimizer_step(state, cfg, SOURCES["pretrain"], autocast, 1e-3)
    microbatch = ["enter", "forward", "loss", "exit", "backward"]
    assert events == [*microbatch, *microbatch, "clip", "update"]


def test_gradients_are_clipped_over_the_whole_step() -> None:
    state, cfg = fresh(B=2, accum_steps=2, grad_clip=1e-3)
    with mock.patch.object(state.optimizer, "zero_grad"):
        norm = step(state, cfg, SOURCES["pretrain"])[1]
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    assert norm.item() > 1e-3
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(1e-3, rel=1e-3)


def test_without_a_limit_gradients_are_not_clipped_and_their_norm_is_known() -> None:
    outcomes = []
    for limit in (None, 1e9):
        state, cfg = fresh(B=2, accum_steps=2, grad_clip=limit)
        with torch.no_grad():
            state.model.embedding.weight.mul_(100)
        outcomes.append((*step(state, cfg, SOURCES["pretrain"]), [p.detach() for p in state.model.parameters()]))
    assert same(outcomes[0], outcomes[1])
    assert outcomes[0][1].item() > 1.0


def test_training_learns(run_folder: Run) -> None:
    folder = run_folder("train.total_steps=40", "train.base_lr=0.01", "train.eval_every=40", "train.ckpt_every=40")
    result = json.loads((folder / "result.json").read_text())["phases"][0]
    assert result["best_val_loss"] < result["unigram_loss"] - 0.5
    assert result["bits_per_byte"] < result["unigram_bits_per_byte"]


def test_an_answer_known_by_heart_is_known_beside_other_dialogues_too_if_they_are_isolated() -> None:
    """It has the very loss that it has alone. Without isolation the others get in its way."""
    files = dialogues([7, 9, 12, 8, 10, 6, 11, 9])
    generator = torch.Generator().manual_seed(0)
    files = files._replace(ids=torch.randint(256, (len(files.ids),), generator=generator).to(torch.uint16))
    alone, isolated = ChatStream(files, 11, 1, isolate=True), ChatStream(files, 40, 1, isolate=True)
    assert (len(alone), len(isolated)) == (8, 2)
    cfg = TrainCfgSchema(B=8, accum_steps=1, optim="adamw")
    torch.manual_seed(0)
    model = GPT(CFG.model_copy(update={"T": 40, "C": 32}))
    state = TrainState(model, make_optimizer(model, cfg))
    for _ in range(120):
        train_loop.optimizer_step(state, cfg, alone, nullcontext, 1e-2)
    together = ChatStream(files, 40, 1)
    losses = [
        evaluate(model, allocate_sequences({"": (source, 1.0)}, 8), 2, nullcontext)
        for source in (alone, isolated, together)
    ]
    by_heart, beside, disturbed = (loss.mean for loss in losses if loss)
    assert by_heart < 0.01 and beside == pytest.approx(by_heart, abs=1e-5)
    assert disturbed > by_heart + 0.1


def test_a_scaled_loss_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two changes no bit in fp32, so that loss, gradient norm and weights are as without it."""
    outcomes = []
    for scale in (1.0, 4096.0):
        monkeypatch.setattr("train.loop.steps.choose_loss_scale", lambda *_, scale=scale: scale)
        state, cfg = fresh(B=2, accum_steps=2)
        facts = [step(state, cfg, SOURCES["sft"]) for _ in range(2)]
        outcomes.append((facts, [p.detach() for p in state.model.parameters()]))
    assert same(outcomes[0], outcomes[1])


def test_as_many_tensors_live_after_twenty_steps_as_after_five(
    run_folder: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[int, tuple[int, int]] = {}
    advance = RunLogger.advance

    def note_call(report: RunLogger, step: int) -> None:
        held[step] = (live.count, live.now)
        advance(report, step)

    monkeypatch.setattr(RunLogger, "advance", note_call)
    every = [f"train.{what}_every=5" for what in ("eval", "ckpt", "log")]
    every += ["train.eval_sequences=8"]  # the counter takes its time
    with LiveBytes() as live:
        run_folder("train.total_steps=20", "memory=ckpt", "model.dropout=0.1", *every)
    assert held[5] == held[20] and held[5][0] > 0
