"""Validation loss over the same sequences every time, whatever B, measured against a unigram model."""

import math
from contextlib import nullcontext

import pytest
import torch
from test_batches import T, dialogues, documents

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import ChatStream, TokenStream
from niels_gpt.loss import IGNORE, next_token_loss
from niels_gpt.model.gpt import GPT
from train.evaluate import batches, evaluate, yardstick

MODEL = GPT(ModelCfg(V=256, T=T, C=16, L=1, H=2, d_ff=32, dropout=0.5))
CHATS = ChatStream(dialogues([3, 9, 4, 5, 2, 7, 6] * 3), T, None)


@pytest.mark.parametrize("B", [1, 2, 3, 5, 64])
def test_the_loss_does_not_depend_on_B(B: int) -> None:
    x, y = CHATS.draw(0, len(CHATS))
    expected = next_token_loss(MODEL.eval()(x), y, int((y != IGNORE).sum())).item()
    assert evaluate(MODEL, CHATS, 1000, B, nullcontext) == pytest.approx(expected, rel=1e-6)


def test_it_sees_as_many_sequences_as_asked_for_in_batches_of_one_shape() -> None:
    seen = list(batches(CHATS, 5, 3))
    assert [batch.x.shape for batch in seen] == [(3, T), (3, T)]
    assert (seen[1].y[2] == IGNORE).all() and (seen[1].y[1] != IGNORE).any()


def test_evaluation_rests_dropout_draws_nothing_and_leaves_the_mode() -> None:
    MODEL.train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    losses = {evaluate(MODEL, CHATS, 5, 2, nullcontext) for _ in range(2)}
    assert len(losses) == 1 and MODEL.training
    assert torch.equal(state, torch.get_rng_state())


def test_the_unigram_model_knows_how_often_each_token_occurs() -> None:
    source = TokenStream(documents(161), T, None)  # every id but the first is a target once
    measure = yardstick(source, source, 1000, [2] * 256, 4)
    counts = torch.ones(256, dtype=torch.float64)
    counts[1:161] += 1
    assert measure.unigram_loss == pytest.approx(-math.log(2 / counts.sum().item()))
    assert measure.bytes_per_target == 2
    assert measure.bits_per_byte(math.log(2)) == pytest.approx(0.5)
