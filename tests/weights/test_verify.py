"""niels_gpt export --verify: findings from a program's answer, and programs that are missing or die."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from niels_gpt.config import ModelCfg
from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import NielsError
from niels_gpt.generation.generate import generate
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import BytesTokenizer
from niels_gpt.weights import verify

TOKENIZER = BytesTokenizer()
PARTS = ["token ids", "chat prompt", "greedy tokens", "loss"]


@pytest.fixture(scope="module")
def model() -> GPT:
    """A model whose choices are clear, though it has learned nothing."""
    torch.manual_seed(0)
    model = GPT(ModelCfg(V=TOKENIZER.V, T=32, C=32, L=1, H=2, d_ff=32, tie_embeddings=True)).eval()
    model.embedding.weight.data *= 50
    return model


@pytest.fixture(scope="module")
def question(model: GPT) -> dict[str, Any]:
    return verify.make_question(model, TOKENIZER, chats=True)


@pytest.fixture(scope="module")
@torch.no_grad()
def answer(model: GPT, question: dict[str, Any]) -> dict[str, Any]:
    """The answer of a program that has the model."""
    generated: list[Any] = []
    for prompt, count, seed in question["requests"]:
        ids = list(generate(model, prompt, count, temperature=float(seed is not None), seed=seed or 0))
        scores = model(torch.tensor([[*prompt, *ids]]))[0].log_softmax(-1)[len(prompt) - 1 :]
        generated.append(
            [ids, [] if seed is None else [float(row[id]) for row, id in zip(scores, ids, strict=False)]]
        )
    return {
        "texts": [TOKENIZER.encode(text) for text in question["texts"]],
        "chat": encode_prompt([Message(**message) for message in question["chat"]], TOKENIZER),
        "generated": generated,
    }


def swap(ids: list[int]) -> None:
    ids[0] = (ids[0] + 1) % 256


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "token ids": lambda said: swap(next(ids for ids in said["texts"] if ids)),
    "chat prompt": lambda said: said["chat"].pop(),
    "greedy tokens": lambda said: swap(said["generated"][0][0]),
    "loss": lambda said: said["generated"][-1][1].__setitem__(0, -9.0),
}


@pytest.mark.parametrize("changed", [*PARTS, None])
def test_whatever_differs_is_found(
    model: GPT, question: dict[str, Any], answer: dict[str, Any], changed: str | None
) -> None:
    said = deepcopy(answer)
    if changed:
        CHANGES[changed](said)
    found = list(verify.compare_answer(model, TOKENIZER, question, said, "float32"))
    assert [finding.subject for finding in found] == PARTS
    assert [finding.subject for finding in found if not finding.agrees] == [changed] * bool(changed)


def test_a_program_that_dies_is_named(model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> list[str]:
        return list(verify.verify_export(model, TOKENIZER, tmp_path, to="gguf", dtype="float32", chats=True))

    monkeypatch.setitem(verify.READERS, "gguf", {"xllamacpp": "xllamacpp"})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "model.gguf").touch()
    (tmp_path / "xllamacpp.py").write_text("raise SystemExit('bad magic')")
    with pytest.raises(NielsError, match=r"xllamacpp cannot read .*: bad magic"):
        check()
