"""Scoring text: each token once, with the context that was promised, and no trace of how it was batched."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from niels_gpt.config import ModelCfg
from niels_gpt.evaluation.scoring import BYTES, ENDS, MISSES, NATS, TOKENS, score_windows
from niels_gpt.evaluation.texts import open_dialogues, open_documents
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, BytesTokenizer, train_bpe

T = 16
BYTE = BytesTokenizer()
LONG, SHORT = "Ein längerer Text, der über mehrere Fenster geht.\n" * 3, "kurz"


@pytest.fixture(scope="module")
def model() -> GPT:
    """A model whose predictions differ from token to token."""
    torch.manual_seed(0)
    model = GPT(ModelCfg(V=256, T=T, C=16, L=2, H=2, d_ff=32, tie_embeddings=True)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model


@torch.no_grad()
def score_one_by_one(model: GPT, ids: Sequence[int], stride: int) -> list[float]:
    """The loss of each token after the first, predicted alone from what its window shows before it."""
    losses = []
    for place in range(1, len(ids)):
        begin = 0 if place <= T else -(-(place - T) // stride) * stride
        logits = model(torch.tensor([ids[begin:place]]))[0, -1]
        losses.append(float(F.cross_entropy(logits, torch.tensor(ids[place]))))
    return losses


@pytest.mark.parametrize("stride", [None, 1, 5, 15, 16])
def test_each_token_is_scored_once_with_the_context_of_its_window(
    model: GPT, tmp_path: Path, stride: int | None
) -> None:
    (tmp_path / "a.txt").write_text(LONG)
    (tmp_path / "b.txt").write_text(SHORT)
    texts = open_documents([str(tmp_path)], stride)
    sums = score_windows(model, BYTE, texts.cut(BYTE, T), texts.units)
    start = BYTE.special[END_OF_TEXT]
    expected = [score_one_by_one(model, [start, *text.encode()], stride or T) for text in (LONG, SHORT)]
    for unit, losses in enumerate(expected):
        assert sums[unit, [TOKENS, BYTES]].tolist() == [len(losses), len(losses)], "each byte is a token"
        assert sums[unit, NATS] == pytest.approx(sum(losses), rel=1e-5)
    assert len({round(loss, 3) for loss in expected[0]}) > 20


def test_the_batch_makes_no_difference(model: GPT, tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n}.txt").write_text(LONG[n : 3 * n + 1])
    texts = open_documents([str(tmp_path)], 7)
    whole, single = (
        score_windows(model, BYTE, texts.cut(BYTE, T), texts.units, batch=size) for size in (10_000, 1)
    )
    np.testing.assert_allclose(whole, single, rtol=1e-5)


def test_pieces_are_the_same_bytes_for_every_tokenizer(model: GPT, tmp_path: Path) -> None:
    text = "".join(f"Satz {n} über {n * n}.\n" for n in range(1000))
    (tmp_path / "a.txt").write_text(text)
    bpe = train_bpe([text], 300)
    torch.manual_seed(1)
    larger = GPT(model.cfg.model_copy(update={"V": 300}))
    texts = open_documents([str(tmp_path)])
    size = len(text.encode())
    assert (texts.units, texts.size) == (-(-size // 4096), size)
    counts = [
        score_windows(scored, tokenizer, texts.cut(tokenizer, T), texts.units)[:, BYTES]
        for scored, tokenizer in ((model, BYTE), (larger, bpe))
    ]
    assert counts[0].tolist() == [4096] * (texts.units - 1) + [size % 4096]
    assert counts[1].sum() == size and abs(counts[1] - counts[0]).max() < max(bpe.token_bytes())


def test_of_a_dialogue_the_answers_and_their_ends_count(model: GPT, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "one"},'
        ' {"role": "user", "content": "2?"}, {"role": "assistant", "content": "zwölf"}]}\n'
        '{"prompt": "3?", "completion": "three"}\n'
    )
    texts = open_dialogues([str(tmp_path / "a.jsonl")])
    sums = score_windows(model, BYTE, texts.cut(BYTE, T), texts.units)
    assert sums[:, [TOKENS, BYTES, ENDS]].tolist() == [[11, 9, 2], [6, 5, 1]] and texts.size == 14
    assert (sums[:, MISSES] <= sums[:, TOKENS]).all() and sums[:, MISSES].sum() > 0
