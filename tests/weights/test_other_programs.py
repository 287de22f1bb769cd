"""What others make of an export, each in an environment of its own: the same ids, masks, answers and losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import carry_out, composing, smoke
from support.environments import ask, make_environment
from support.foreign_tokenizers import make_llama3

from niels_gpt.data.chat_template import encode_dialogue, encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.generation.chat import ChatSession, load_session
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN
from niels_gpt.weights.llama import export_llama
from train.config import load_plan

pytestmark = pytest.mark.long
TRANSFORMERS = {"4.57": "transformers==4.57.*", "5.3": "transformers==5.3.*", "newest": "transformers"}
SHAPES = {
    "tied": ["model.tie_embeddings=true", "model.C=64", "model.H=2", "data.tokenizer=bytes", "model.V=null"],
    "untied": ["model.C=96", "model.H=4", "model.L=3", "model.rope_theta=5000.0", "model.d_ff=200"],
    "adopted": ["model.tie_embeddings=true", "model.C=64", "model.V=null"],
}
TRAINING = ["model.T=256", "train.B=4", "train.total_steps=40", "train.eval_every=40", "sft.train.total_steps=40"]
MARGIN = 1e-4  # between the best two logits, below which rounding may choose
TEXTS = [
    "",
    " Hello  wörld, it's 漢字 😀\n\n\tx ",
    "def f(x):\r\n    return 12345",
    "cafe\u0301 \u00a0\u200b\u2028.",
]
DIALOGUES = [
    [("user", "How many?"), ("assistant", "Three.")],
    [("system", " Be\nnice. "), ("user", ""), ("assistant", ""), ("user", "é 漢"), ("assistant", "漢 \n")],
]


@pytest.fixture(scope="module", params=SHAPES)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> ChatSession:
    """A model that has learned a little, of one of several shapes and tokenizers."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [*SHAPES[request.param], *TRAINING]
    if request.param == "adopted":
        make_llama3(folder / "tokenizer.json")
        overrides.append(f"data.tokenizer={folder / 'tokenizer.json'}")
    with composing() as composed:
        carry_out(load_plan(composed(*smoke("smoke_pipeline", folder / "run", cache_dir), *overrides)))
    return load_session(folder / "run")


@torch.no_grad()
def require_greedy(model: GPT, prompt: Sequence[int], said: Sequence[int]) -> None:
    """Check that each id said is the likeliest, or one of two that are as likely."""
    logits = model(torch.tensor([[*prompt, *said]]))[0, len(prompt) - 1 : -1]  # (said, V)
    best, ids = logits.topk(2)
    clear = best[:, 0] - best[:, 1] > MARGIN
    assert clear.float().mean() > 0.9, "the model has learned too little"
    assert torch.equal(torch.tensor(said)[clear], ids[clear, 0])


@pytest.mark.parametrize("version", TRANSFORMERS)
def test_transformers_reads_an_export_as_we_read_the_run(
    trained: ChatSession, version: str, tmp_path: Path
) -> None:
    python = make_environment(f"transformers-{version}", TRANSFORMERS[version])
    model, tokenizer = trained.model, trained.tokenizer
    export_llama(model, tokenizer, tmp_path / "out", chats=True)
    prompts = ["The number", "How many are there? " * 5]
    ids = torch.randint(tokenizer.V, (2, 64), generator=torch.Generator().manual_seed(0))
    question: dict[str, Any] = {"folder": str(tmp_path / "out"), "texts": TEXTS, "prompts": prompts, "count": 100}
    question |= {"dialogues": [[{"role": r, "content": c} for r, c in turns] for turns in DIALOGUES]}
    said = ask(python, "transformers_probe", question | {"ids": ids.tolist()})
    assert (said["ids"], said["texts"]) == ([tokenizer.encode(text) for text in TEXTS], TEXTS)
    dialogues = [[Message(role, content) for role, content in turns] for turns in DIALOGUES]  # type: ignore[arg-type]
    encoded = [encode_dialogue(dialogue, tokenizer, 256) for dialogue in dialogues]
    assert said["dialogues"] == [[chat.ids, list(map(int, chat.target_mask))] for chat in encoded if chat]
    assert said["prompt"] == encode_prompt(dialogues[0][:1], tokenizer)
    text, turn = tokenizer.special[END_OF_TEXT], tokenizer.special[END_OF_TURN]
    assert (said["special"], said["length"]) == ([text, turn, text], 256)
    torch.testing.assert_close(torch.tensor(said["logits"]), model(ids), rtol=1e-4, atol=1e-4)
    for prompt, mask, generated in zip(
        map(tokenizer.encode, prompts), said["padding"], said["generated"], strict=True
    ):
        assert mask == [0] * (len(mask) - len(prompt)) + [1] * len(prompt)
        ended = next((n for n, id in enumerate(generated, 1) if id in (text, turn)), len(generated))
        require_greedy(model, prompt, generated[:ended])
        assert {*generated[ended:]} <= {text}, "it goes on after an end"
