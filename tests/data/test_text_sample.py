"""A tokenizer learns from all of a text, or from a sample of it, and no text can stall it."""

import random
import re
import time
from unittest import mock

from niels_gpt.data.text_sample import sample_texts
from niels_gpt.tokenizer import train_bpe

WORDS = ["the", "cat's", "naïve", "漢字", "1234,", "sat\n\n", "  def", "f(x):", "\x1f", "\u2003so", "!?"]


def test_below_the_limit_it_learns_what_the_whole_texts_teach() -> None:
    words = random.Random(1).choices([*WORDS, *map(str, range(300))], k=40_000)
    texts = [" ".join(words), "short", " ".join(words[:9000])]
    sample = sample_texts(texts, 10**6)
    assert "".join(sample) == "".join(texts) and len(sample) > 20
    with mock.patch("niels_gpt.tokenizer.PIECE", re.compile("(?s).+")):
        whole = train_bpe(texts, 500)
    assert train_bpe(sample, 500).hash() == train_bpe(texts, 500).hash() == whole.hash()
    assert sample_texts(["a\ud800"], 100_000) == ["a\ud800"]  # the tokenizer refuses it


def test_above_it_a_sample_is_drawn_from_the_whole_text_the_same_each_time() -> None:
    texts = [f"{n} {'é' * 28} " for n in range(100_000)]
    sample = sample_texts(iter(texts), 600_000)
    assert 500_000 < sum(len(piece.encode()) for piece in sample) <= 600_000
    assert sample == sample_texts(texts, 600_000)
    numbers = [int(piece.split()[0]) for piece in sample]
    tenths = [sum(number // 10_000 == tenth for number in numbers) for tenth in range(10)]
    assert min(tenths) > 0.7 * max(tenths) and numbers == sorted(numbers)
    assert 0.4 < sum(number % 2 for number in numbers) / len(numbers) < 0.6  # as with questions and answers


def test_a_long_text_without_spaces_cannot_stall_it() -> None:
    line = "".join(random.Random(0).choices("ACGT", k=400_000))
    started = time.process_time()
    sample = sample_texts([line], 1_000_000)
    assert len("".join(sample)) <= 1_000_000 / 16
    assert train_bpe(sample, 600).V == 600
    train_bpe([line[:200_000]], 600)  # 11 s as one word
    assert time.process_time() - started < 6
