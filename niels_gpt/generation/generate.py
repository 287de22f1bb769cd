"""Generate text with a trained model, one token at a time."""

import codecs
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from niels_gpt.errors import NonFiniteError
from niels_gpt.generation.sampling import Sampling
from niels_gpt.generation.window import Window
from niels_gpt.model.gpt import GPT
from niels_gpt.model.kv_cache import KVCache
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer

FinishReason = Literal["stop", "length"] | None
log = logging.getLogger("niels_gpt")


class Token(NamedTuple):
    """A chosen token, the text that it completes, and the model's own log probabilities, in nats.

    `text` may be empty, or have that of tokens before; together the texts are the answer, without the stop text.
    `alternatives` are the likeliest tokens: id, text and log probability. Only the last token has a reason.
    """

    id: int
    text: str
    logprob: float
    alternatives: list[tuple[int, str, float]]
    finish_reason: FinishReason


def draw_token(logits: Tensor, seen: Collection[int], sampling: Sampling, random: torch.Generator) -> int:
    """Return a token id for `logits` (V), in fp32 on the CPU; `seen` has the ids in the context.

    The steps are those of transformers, in its order: repetition penalty (Keskar et al., CTRL, 2019),
    temperature, top-k, top-p (Holtzman et al., 2020), and min-p (Nguyen et al., 2024). NonFiniteError if the best
    logit is nan or inf.
    """
    if not logits.max().isfinite():
        raise NonFiniteError(
            "the model's logits are nan or inf", "its weights are damaged; use another checkpoint"
        )
    if sampling.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(seen)))
        old, by = logits[ids], sampling.repetition_penalty
        logits = logits.index_copy(0, ids, torch.where(old < 0, old * by, old / by))
    if sampling.temperature == 0:
        return int(logits.argmax())
    best, ids = logits.topk(min(sampling.top_k or len(logits), len(logits)))
    # Relative to the best, and with a temperature that float32 can hold: else the smallest gives nan.
    p = ((best - best[0]) / max(sampling.temperature, torch.finfo(best.dtype).tiny)).softmax(-1)
    p = p.where((p.cumsum(-1) - p < sampling.top_p) & (p >= sampling.min_p * p[0]), 0)
    return int(ids[torch.multinomial(p, 1, generator=random)])


class Generator:
    """A trained model with its tokenizer, for one stream at a time.

    It caches the last text, so that a text with the same beginning costs only the rest. Draws are made on the CPU,
    so they are equal on every device.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer, self.cache = model, tokenizer, KVCache(model)
        self.window = Window(model.cfg.T, tokenizer.special)  # of the last stream
        self.warned = False  # that a prompt was cut: once, until this is set to False
        self.ends = frozenset(tokenizer.special[end] for end in (END_OF_TEXT, END_OF_TURN))

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Token]:
        """Yield the tokens that continue `prompt` (at least one id) as they come; `close()` stops it.

        The last may be the end of the text or turn, whose text is empty. Beyond T tokens the model sees a Window.
        """
        self.window = window = Window(self.model.cfg.T, self.tokenizer.special)
        window.extend(prompt)
        if window.dropped and not self.warned:
            self.warned = True
            counts = len(prompt), window.T, window.dropped
            message = "the prompt has %d tokens, more than the model sees (%d): left out the oldest %d"
            log.warning(message, *counts, extra={"repeats": True})
        random = torch.Generator().manual_seed(sampling.seed)
        text = _TextStream(self.tokenizer, sampling.stop)
        for left in reversed(range(sampling.max_tokens)):
            logits = self.cache.logits(window.ids).float().cpu()  # (V)
            logprobs = logits.log_softmax(-1)
            if sampling.ignore_eos:
                logits = logits.index_fill(0, torch.tensor([*self.ends]), -torch.inf)
            id = draw_token(logits, window.ids, sampling, random)
            ended = id in self.ends
            piece, stopped = text.add(id, final=ended or left == 0)
            likely = zip(*(part.tolist() for part in logprobs.topk(sampling.alternatives)), strict=True)
            alternatives = [(other, self.tokenizer.decode([other]), logprob) for logprob, other in likely]
            reason: FinishReason = "stop" if stopped or ended else "length" if left == 0 else None
            yield Token(id, piece, float(logprobs[id]), alternatives, reason)
            if reason:
                return
            window.extend([id])


class _TextStream:
    """Decode tokens, holding back part of a character and what may be the beginning of a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop, self._held = tokenizer, stop, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, id: int, *, final: bool) -> tuple[str, bool]:
        """Return the text that is complete with a token, or all text if `final`, and whether a stop text is."""
        text = self._held + self._decoder.decode(self._tokenizer.decode_bytes([id]), final)
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        begun = [n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        shown = min(found, default=len(text) - (0 if final else max(begun, default=0)))
        self._held = text[shown:]
        return text[:shown], bool(found)


def generate(
    model: GPT,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    stop: Collection[int] = (),
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> Iterator[int]:
    """Yield up to `max_tokens` ids that continue `prompt` (at least one id), ending before an id in `stop`.

    For a model without a tokenizer; otherwise a Generator can do more.
    """
    sampling, random = Sampling(temperature=temperature, top_k=top_k), torch.Generator().manual_seed(seed)
    cache, window = KVCache(model), Window(model.cfg.T)
    window.extend(prompt)
    for _ in range(max_tokens):
        id = draw_token(cache.logits(window.ids).float().cpu(), window.ids, sampling, random)
        if id in stop:
            return
        yield id
        window.extend([id])
