"""Sample from a model, one token at a time."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from niels_gpt.model.gpt import GPT


def sample_token(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """Return a token id for `logits` (V): the best at temperature 0, else a draw from the `top_k` best."""
    if temperature == 0:
        return int(logits.argmax())
    best, ids = logits.topk(min(top_k, len(logits)))
    # Relative to the best, and with a temperature that float32 can hold: else the smallest gives nan.
    scaled = (best - best[0]) / max(temperature, torch.finfo(best.dtype).tiny)
    chosen = torch.multinomial(scaled.softmax(-1), 1, generator=generator)
    return int(ids[chosen])


@torch.no_grad()
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

    The model sees the last T ids. Draws are made on the CPU, so they are equal on every device.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(max_tokens):
        context = torch.tensor([ids[-model.cfg.T :]], device=model.device)  # (1, T)
        chosen = sample_token(model(context)[0, -1].float().cpu(), temperature, top_k, generator)
        if chosen in stop:
            return
        ids.append(chosen)
        yield chosen
