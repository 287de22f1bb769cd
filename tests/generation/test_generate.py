"""Generation: as without a cache, reproducible, streamed as text, ended by end tokens and stop texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import NonFiniteError
from niels_gpt.generation.generate import Generator, Token, draw_token, generate
from niels_gpt.generation.sampling import Sampling
from niels_gpt.generation.window import Window
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, BytesTokenizer

BYTES = BytesTokenizer()
ENDS = torch.tensor([BYTES.special[END_OF_TEXT], BYTES.special[END_OF_TURN]])
TIE = 1e-5  # of two tokens' logits: rounding may then choose


def make_model(**settings: int) -> GPT:
    """Return a model with clear preferences."""
    torch.manual_seed(0)
    shape = {"V": 256, "T": 8, "C": 16, "L": 1, "H": 2, "d_ff": 32, "dropout": 0.5, "tie_embeddings": True}
    model = GPT(ModelCfg.model_validate(shape | settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model


MODEL = make_model()


def stream(generator: Generator, prompt: Sequence[int], **sampling: Any) -> list[Token]:
    return list(generator.stream(prompt, Sampling(**sampling)))


@torch.no_grad()
def generate_uncached(model: GPT, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield tokens but ends, each from a pass over the whole window, with their logits."""
    window, random = Window(model.cfg.T, BYTES.special), torch.Generator().manual_seed(sampling.seed)
    window.extend(prompt)
    model.eval()
    for _ in range(sampling.max_tokens):
        logits = model(torch.tensor([window.ids]))[0, -1]
        allowed = logits.index_fill(0, ENDS, -torch.inf)
        id = draw_token(allowed, window.ids, sampling, random)
        yield id, logits
        window.extend([id])


def compare(model: GPT, prompt: Sequence[int], sampling: Sampling, generator: Generator) -> bool:
    """Require the same tokens and probabilities as without a cache; return whether rounding chose another."""
    told = list(generator.stream(prompt, sampling))
    assert len(told) == sampling.max_tokens and told[-1].finish_reason == "length"
    for token, (id, logits) in zip(told, generate_uncached(model, prompt, sampling), strict=True):
        assert abs(token.logprob - float(logits.log_softmax(-1)[token.id])) < TIE
        if token.id != id:  # with logits as close as that, the draw was a tie
            return True
    return False


PROMPTS = [b"a", b"The quick brown fox jumps over the lazy dog. " * 5]
PROMPTS += [bytes(encode_prompt([Message("system", "be nice"), Message("user", "hi")], BYTES))]


@pytest.mark.parametrize("H_kv", [4, 2])
def test_tokens_are_those_of_a_model_without_a_cache(H_kv: int) -> None:
    model = make_model(T=48, C=32, L=2, H=4, H_kv=H_kv)
    generator = Generator(model, BYTES)
    for seed in range(6):
        sampling = Sampling(seed=seed, max_tokens=80, ignore_eos=True)
        assert not compare(model, [*PROMPTS[seed % 3]], sampling, generator)


@pytest.mark.slow
def test_200_tokens_of_200_seeds_are_those_of_a_model_without_a_cache() -> None:
    model = make_model(T=128, C=32, L=2, H=4)
    generator = Generator(model, BYTES)
    flips = [
        compare(
            model,
            [*PROMPTS[seed % 3]],
            Sampling(seed=seed, max_tokens=200, temperature=1.0, top_k=0, ignore_eos=True),
            generator,
        )
        for seed in range(200)
    ]
    assert sum(flips) <= 2


def test_the_same_seed_says_the_same_and_another_something_else() -> None:
    texts = [list(generate(MODEL, [1, 2], 20, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 20, "longer than T: the model sees the newer half"


def test_temperature_0_and_the_smallest_take_the_best_token() -> None:
    first = list(generate(MODEL, [1, 2], 5, temperature=0))
    logits = MODEL.eval()(torch.tensor([[1, 2]]))[0, -1]
    assert first[0] == int(logits.argmax())
    for temperature in (0, 1e-30, 5e-324):
        assert list(generate(MODEL, [1, 2], 5, temperature=temperature, seed=9)) == first


def test_it_ends_before_a_stop_token_and_leaves_the_mode_of_the_model() -> None:
    said = list(generate(MODEL.train(), [1, 2], 20, seed=1))
    stopped = list(generate(MODEL, [1, 2], 20, seed=1, stop=[said[4]]))
    assert stopped == said[: said.index(said[4])]
    assert MODEL.training


def test_a_token_has_the_models_own_probability_whatever_is_drawn_from() -> None:
    sampling = {"temperature": 0.3, "top_k": 5, "repetition_penalty": 1.5, "alternatives": 16}
    expected = MODEL.eval()(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1).detach()
    token, *_ = stream(Generator(MODEL, BYTES), [1, 2], max_tokens=1, **sampling)
    assert token.logprob == pytest.approx(float(expected[token.id]), abs=TIE)
    ids, texts, logprobs = zip(*token.alternatives, strict=True)
    assert list(logprobs) == pytest.approx(expected.topk(16).values.tolist(), abs=TIE)
    assert list(ids) == expected.topk(16).indices.tolist() and texts[0] == BYTES.decode(ids[:1])


def script(monkeypatch: pytest.MonkeyPatch, ids: Sequence[int]) -> Generator:
    """Return a generator that chooses these ids, whatever the model makes of them."""
    chosen = iter(ids)
    monkeypatch.setattr("niels_gpt.generation.generate.draw_token", lambda *_: next(chosen))
    return Generator(MODEL, BYTES)


@pytest.mark.parametrize(
    ("said", "stop", "expected", "reason"),
    [
        ("one two three", ["two"], "one ", "stop"),
        ("one two three", ["three", "e t"], "on", "stop"),
        ("one two tw", ["two!"], "one two tw", "length"),
        ("é😀ü", ["ü"], "é😀", "stop"),
        ("aaab", ["aab"], "a", "stop"),
        ("abc", [], "abc", "length"),
    ],
)
def test_a_stop_text_and_what_may_begin_one_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, said: str, stop: list[str], expected: str, reason: str
) -> None:
    ids = said.encode()
    tokens = stream(script(monkeypatch, ids), [1], stop=stop, max_tokens=len(ids))
    assert "".join(token.text for token in tokens) == expected
    assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [reason]
    assert [token.id for token in tokens] == [*ids[: len(tokens)]]
    for n in range(len(tokens)):  # at no time is more shown than what stays
        assert expected.startswith("".join(token.text for token in tokens[:n]))


def test_text_that_was_held_back_comes_with_the_end_of_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    end = BYTES.special[END_OF_TURN]
    tokens = stream(script(monkeypatch, [*b"a tw", 0xC3, end, 97]), [1], stop=["two"])
    assert [token.text for token in tokens] == ["a", " ", "", "", "", "tw\ufffd"]
    assert (tokens[-1].id, tokens[-1].finish_reason) == (end, "stop")


@pytest.mark.parametrize("said", ["a\ufffdb".encode(), b"a\x80\x80\xffb"])
def test_bytes_that_are_no_characters_hold_nothing_back(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    tokens = stream(script(monkeypatch, said), [1], max_tokens=len(said))
    assert "".join(token.text for token in tokens) == said.decode(errors="replace")
    assert "\ufffd" in "".join(token.text for token in tokens[:4])


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_damaged_model_is_named(temperature: float) -> None:
    model = make_model()
    model.embedding.weight.data[97] = torch.nan
    with pytest.raises(NonFiniteError, match="logits are nan or inf"):
        stream(Generator(model, BYTES), [97], temperature=temperature)


def test_ignoring_the_end_no_answer_ends_early() -> None:
    model = make_model()
    model.embedding.weight.data[BYTES.special[END_OF_TURN]] = 2 * model.embedding.weight.data[97]
    generator = Generator(model, BYTES)
    sampling = {"temperature": 2.0, "max_tokens": 60, "top_k": 0}
    assert min(len(stream(generator, [97], seed=seed, **sampling)) for seed in range(10)) < 60
    for seed in range(10):
        assert len(stream(generator, [97], seed=seed, ignore_eos=True, **sampling)) == 60


def test_a_prompt_that_is_too_long_is_cut_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    generator = Generator(MODEL, BYTES)
    stream(generator, [1] * 8, max_tokens=3)
    assert not caplog.messages
    for count in (9, 10):
        stream(generator, [1] * count, max_tokens=3)
    assert caplog.messages == ["the prompt has 9 tokens, more than the model sees (8): left out the oldest 4"]
