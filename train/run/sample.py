"""Log a sample of a trained model: an answer to a held-out question, or a text."""

import logging

from niels_gpt.data.batches import Source
from niels_gpt.data.chat_template import decode_turns
from niels_gpt.generation.generate import generate
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import ASSISTANT, END_OF_TEXT, END_OF_TURN, Tokenizer
from train.config.schema import PhaseName

MAX_TOKENS = 80
TEMPERATURE = 0.3
log = logging.getLogger("niels_gpt")


def log_sample(phase: PhaseName, model: GPT, tokenizer: Tokenizer, val_source: Source) -> None:
    """Log a sample: an answer after SFT, a text after pretraining."""
    end = tokenizer.special[END_OF_TEXT]
    if phase == "sft":
        lines = sample_answer(model, tokenizer, val_source)
    else:
        lines = [tokenizer.decode(list(generate(model, [end], MAX_TOKENS, stop=[end], temperature=TEMPERATURE)))]
    for line in lines:
        log.info("sample  %s", line)


def sample_answer(model: GPT, tokenizer: Tokenizer, val_source: Source) -> list[str]:
    """Return a held-out question with the model's answer, turn by turn, and the held-out answer."""
    x, y = (rows[0] for rows in val_source.draw(0, 1)[:2])
    asked = x == tokenizer.special[ASSISTANT]
    learned = asked & (y != IGNORE)  # not an answer that is marked as one not to learn
    held_out = x.tolist()
    begins = int((learned if learned.any() else asked).nonzero()[0]) + 1
    prompt, rest = held_out[:begins], held_out[begins:]
    end = tokenizer.special[END_OF_TURN]
    said = list(generate(model, prompt, MAX_TOKENS, stop=[end], temperature=TEMPERATURE))
    turns = [f"{turn.role}: {turn.content}" for turn in decode_turns([*prompt, *said], tokenizer)]
    expected = rest[: rest.index(end)] if end in rest else rest
    return [*turns, f"(held-out answer: {tokenizer.decode(expected)})"]
