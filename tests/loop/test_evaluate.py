"""Validation loss over the same sequences every time, whatever B, measured against a unigram model."""

import math
import string
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import Run
from data.test_batches import T, dialogues, documents

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import ChatStream, TokenStream
from niels_gpt.errors import DataError
from niels_gpt.loss import IGNORE, next_token_loss
from niels_gpt.model.gpt import GPT
from train.loop.evaluate import allocate_sequences, draw_batches, evaluate, fit_unigram_baseline

MODEL = GPT(ModelCfg(V=256, T=T, C=16, L=1, H=2, d_ff=32, dropout=0.5, tie_embeddings=True))
CHATS = ChatStream(dialogues([3, 9, 4, 5, 2, 7, 6] * 3), T, 1)


@pytest.mark.parametrize("B", [1, 5, 64])
def test_the_loss_does_not_depend_on_B(B: int) -> None:
    x, y, _ = CHATS.draw(0, len(CHATS))
    expected = next_token_loss(MODEL.eval()(x), y, int((y != IGNORE).sum())).item()
    loss = evaluate(MODEL, allocate_sequences({"chats": (CHATS, 1.0)}, 1000), B, nullcontext)
    assert loss and loss.mean == loss.by_source["chats"] == pytest.approx(expected, rel=1e-6)


def test_dialogues_that_share_sequences_have_the_loss_that_each_has_alone_if_they_are_isolated() -> None:
    lengths = [3, 4, 2, 2, 5, 3]
    packed = [ChatStream(dialogues(lengths), T, 1, isolate=isolate) for isolate in (True, False)]
    assert len(packed[0]) < len(lengths)
    total, targets = torch.zeros(()), 0
    files = dialogues(lengths)
    for start, end in pairwise(files.offsets.tolist()):
        x, mask = files.ids[start:end].long(), files.target_mask[start + 1 : end].bool()
        total += MODEL.eval().loss(x[None, :-1], x[None, 1:].where(mask, IGNORE), 1.0).detach()
        targets += int(mask.sum())
    alone = (total / targets).item()
    isolated, together = (
        evaluate(MODEL, allocate_sequences({"chats": (source, 1.0)}, 1000), 2, nullcontext) for source in packed
    )
    assert isolated and isolated.mean == pytest.approx(alone, abs=1e-6)
    assert together and together.mean != pytest.approx(alone, abs=1e-6)


def test_it_sees_as_many_sequences_as_asked_for_in_batches_of_one_shape() -> None:
    seen = list(draw_batches(CHATS, 5, 3))
    assert [batch.x.shape for batch in seen] == [(3, T), (3, T)]
    assert (seen[1].y[2] == IGNORE).all() and (seen[1].y[1] != IGNORE).any()


def test_evaluation_rests_dropout_and_draws_nothing() -> None:
    MODEL.train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    losses = [evaluate(MODEL, allocate_sequences({"chats": (CHATS, 1.0)}, 5), 2, nullcontext) for _ in range(2)]
    assert losses[0] == losses[1]
    assert torch.equal(state, torch.get_rng_state())


def test_each_row_validates_once_at_most_and_a_source_counts_by_its_share() -> None:
    """A source of few rows gives all of them; the others make up for it, and its share of the loss stays."""
    few, many = TokenStream(documents(4 * T + 1), T, 0), TokenStream(documents(200, 50), T, 0)
    parts = allocate_sequences({"few": (few, 1.0), "many": (many, 3.0)}, 20)
    assert [(part.name, part.share, part.sequences) for part in parts] == [("few", 0.25, 4), ("many", 0.75, 16)]
    loss = evaluate(MODEL, parts, 3, nullcontext)
    assert loss and list(loss.by_source) == ["few", "many"]
    for name, source, sequences in (("few", few, 4), ("many", many, 16)):
        x, y, _ = source.draw(0, sequences)
        assert len({tuple(row) for row in x.tolist()}) == sequences
        expected = next_token_loss(MODEL.eval()(x), y, y.numel()).item()
        assert loss.by_source[name] == pytest.approx(expected, rel=1e-6)
    assert loss.mean == pytest.approx(0.25 * loss.by_source["few"] + 0.75 * loss.by_source["many"])


@pytest.mark.parametrize(
    ("rows", "weights", "asked", "expected"),
    [
        ((400, 400), (1, 1), 128, (64, 64)),
        ((4, 400), (1, 1), 128, (4, 124)),
        ((400, 400, 400), (0.01, 1, 1), 9, (1, 4, 5)),
        ((400, 400), (1, 1), 1, (1, 1)),
    ],
)
def test_an_evaluation_is_shared_out_by_weight(
    rows: tuple[int, ...], weights: tuple[float, ...], asked: int, expected: tuple[int, ...]
) -> None:
    sources = {
        str(n): (TokenStream(documents(count * T + 1), T, 0), w)
        for n, (count, w) in enumerate(zip(rows, weights, strict=True))
    }
    assert tuple(part.sequences for part in allocate_sequences(sources, asked)) == expected


def test_the_unigram_model_knows_how_often_each_token_occurs() -> None:
    source = TokenStream(documents(161), T, 1)  # every id but the first is a target once
    measure = fit_unigram_baseline(source, allocate_sequences({"text": (source, 1.0)}, 1000), [2] * 256, 4)
    counts = torch.ones(256, dtype=torch.float64)
    counts[1:161] += 1
    assert measure.unigram_loss == pytest.approx(-math.log(2 / counts.sum().item()))
    assert measure.bytes_per_target == 2
    assert measure.bits_per_byte(math.log(2)) == pytest.approx(0.5)
    with pytest.raises(DataError, match=r"token ids \d+ \.\. 160 in a batch, but model.V=160") as caught:
        fit_unigram_baseline(source, allocate_sequences({"text": (source, 1.0)}, 1000), [2] * 160, 4)
    assert caught.value.hint == "add data.verify=true, which names the damaged file"


def test_validation_targets_without_a_byte_of_text_are_refused_with_the_way_out(
    run_folder: Run, tmp_path: Path
) -> None:
    (tmp_path / "letters.txt").write_text("\n\n".join(string.ascii_letters))
    data = ["data=text", f"data.files=[{tmp_path}/letters.txt]", "data.documents=blank_lines"]
    small = ["data.tokenizer=bytes", "model.V=256", "model.T=1", "data.val_fraction=0.4"]
    told = "the 1 targets in 1 validation sequences contain no bytes of text"
    with pytest.raises(DataError, match=told) as caught:  # it is a document's end
        run_folder(*data, *small, "train.eval_sequences=1")
    assert "raise train.eval_sequences" in caught.value.hint
    run_folder(*data, *small, "train.eval_sequences=2", "train.total_steps=2", name="more")
