"""Compare an export, as other programs read it, with the model that was exported."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import NielsError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer
from niels_gpt.weights import other_programs

READERS = {"hf": {"transformers": "transformers", "mlx-lm": "mlx_lm"}, "gguf": {"xllamacpp": "xllamacpp"}}
TEXTS, GREEDY, SAMPLED = 10_000, 200, 250  # strings, and at most so many tokens of each kind after a prompt
PROMPTS = ["How many are there?", "The number", "What is it?", "def", "Why"]
WORDS = ["the", "it's", "I'll", "they'RE", "'S", "café", "漢字", "1234", "½", "Ⅷ", "٣٤", "😀", "e\u0301", "ẞ", "İ"]
WORDS += ["ſ", "<|user|>", "<|eot_id|>", "\0", "\x1b[0m"]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\r", "\xa0", "\u3000", "\u2028", "\x85", "\u200b", "\ufeff"]
# By the type of the weights: how far a loss may differ, relatively, and the least lead of a logit that is kept.
BOUNDS = {"float32": (1e-5, 1e-4), "float16": (1e-3, 1e-2), "bfloat16": (1e-2, 1e-1), "q8_0": (1e-3, 1e-1)}


class Finding(NamedTuple):
    """What was compared, how far it agrees, and whether that is enough."""

    subject: str
    result: str
    agrees: bool


def verify_export(
    model: GPT, tokenizer: Tokenizer, folder: Path, *, to: str, dtype: str, chats: bool
) -> Iterator[str]:
    """Yield lines on how far the installed programs that read a format agree with the model about its export.

    The programs run in subprocesses and without a network. NielsError, at the end, if one of them cannot read the
    export, if it disagrees by more than the type of the weights explains, or if none is installed.
    """
    question, wrong, asked = make_question(model, tokenizer, chats=chats), [], False
    for program, module in READERS[to].items():
        if find_spec(module) is None:
            yield f"{program} is not installed; pip install {program}"
            continue
        asked = True
        done = subprocess.run(
            [sys.executable, "-P", other_programs.__file__],
            input=json.dumps(question | {"program": program, "folder": str(folder)}),
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            *_, last = ["", *done.stderr.splitlines()]
            raise NielsError(f"{program} cannot read {folder}: {last}", f"another version of {program} may")
        answer = json.loads(done.stdout.splitlines()[-1])
        yield f"{program} {answer['version']}"
        for finding in compare_answer(model, tokenizer, question, answer, dtype):
            yield f"  {finding.subject}: {finding.result}"
            wrong += [] if finding.agrees else [f"{program} differs: {finding.subject}, {finding.result}"]
    if wrong or not asked:
        message = "\n".join(wrong) or f"nothing compared {folder}: {' or '.join(READERS[to])} is not installed"
        raise NielsError(message, f"do not rely on {folder}" if wrong else "install one beside niels_gpt")


def make_question(model: GPT, tokenizer: Tokenizer, *, chats: bool) -> dict[str, Any]:
    """Return what to ask of a program: texts and a chat to encode, and prompts to continue within the context.

    A request is a prompt, a number of tokens, and None for the likeliest ones, or a seed to sample with.
    """
    T, begin = model.cfg.T, tokenizer.special[END_OF_TEXT]
    prompts = [
        encode_prompt([Message("user", text)], tokenizer) if chats else [begin, *tokenizer.encode(text)]
        for text in PROMPTS
    ]
    prompts = [prompt[-max(1, T // 2) :] for prompt in prompts]
    requests = [
        (prompt, max(1, min(most, T - len(prompt))), seed if sampled else None)
        for sampled, most in ((False, GREEDY), (True, SAMPLED))
        for seed, prompt in enumerate(prompts, 1)
    ]
    chat = [{"role": "user", "content": PROMPTS[0]}]
    return {"context": T, "texts": make_strings(TEXTS), "chat": chat, "requests": requests}


def make_strings(number: int) -> list[str]:
    """Return strings of words, spaces, marks and characters of all scripts."""
    draw = random.Random(0)  # noqa: S311
    ascii_, scripts = range(32, 127), (range(0x80, 0x3000), range(0x80, 0xD800), range(0xE000, 0x110000))
    kinds: list[Sequence[str | int]] = [WORDS, SPACES, ascii_, ascii_, ascii_, *scripts]
    choices = ([draw.choice(draw.choice(kinds)) for _ in range(draw.randrange(1, 20))] for _ in range(number))
    return ["".join(part if isinstance(part, str) else chr(part) for part in parts) for parts in choices]


@torch.no_grad()
def compare_answer(
    model: GPT, tokenizer: Tokenizer, question: dict[str, Any], answer: dict[str, Any], dtype: str
) -> Iterator[Finding]:
    """Yield how far the answer to a question of `make_question` is the model's own."""
    pairs = list(zip(map(tokenizer.encode, question["texts"]), answer["texts"], strict=True))
    same = sum(ours == theirs for ours, theirs in pairs)
    yield Finding("token ids", f"equal for {same:,} of {len(pairs):,} texts", same == len(pairs))
    chat = encode_prompt([Message(**message) for message in question["chat"]], tokenizer)
    yield Finding("chat prompt", "equal" if answer["chat"] == chat else "differs", answer["chat"] == chat)

    tolerance, margin = BOUNDS[dtype]
    ends = {tokenizer.special[END_OF_TEXT], tokenizer.special[END_OF_TURN]}
    greedy: list[bool] = []  # agreement of each likeliest id
    unclear = 0
    scored: list[tuple[float, float]] = []  # log probabilities of each sampled id, ours and theirs
    for (prompt, _, seed), (ids, scores) in zip(question["requests"], answer["generated"], strict=True):
        logits = model(torch.tensor([[*prompt, *ids[:-1]]]))[0, len(prompt) - 1 :]  # (ids, V)
        if seed is not None:
            scored += zip(logits.log_softmax(-1)[range(len(ids)), ids].tolist(), scores, strict=True)
            continue
        for (first, second), (best, _), id in zip(*map(torch.Tensor.tolist, logits.topk(2)), ids, strict=True):
            if first - second > margin:
                greedy.append(id == (other_programs.END if best in ends else best))
            else:
                unclear += 1
    close = f"; {unclear} within {margin:g} of another do not count" if unclear else ""
    yield Finding("greedy tokens", f"equal for {sum(greedy):,} of {len(greedy):,}{close}", all(greedy))
    ours, theirs = zip(*(pair for pair in scored if pair[1] is not None), strict=True)
    loss, other = (-sum(scores) / len(scores) for scores in (ours, theirs))
    most = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    text = f"{other:.6f} on {len(ours):,} sampled tokens, ours {loss:.6f}; log probabilities differ by {most:.1e}"
    yield Finding("loss", f"{text} at most", abs(loss - other) <= tolerance * loss)
