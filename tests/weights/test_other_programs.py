"""What others make of an export, each in an environment of its own: the same ids, masks, answers and losses."""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import carry_out, cli, composing, smoke
from support.environments import ask, call, make_environment
from support.foreign_tokenizers import make_gpt2, make_llama3

from niels_gpt.config import SourceCfg
from niels_gpt.data import synthetic
from niels_gpt.data.chat_template import encode_prompt, make_turn
from niels_gpt.data.readers.records import Message
from niels_gpt.generation.chat import load_session
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN
from niels_gpt.weights.llama import export_llama
from niels_gpt.weights.trained_model import open_model
from train.config import load_plan

pytestmark = pytest.mark.long
TRANSFORMERS = {"4.57": "transformers==4.57.*", "5.3": "transformers==5.3.*", "newest": "transformers"}
SHAPES = {
    "tied": ["model.tie_embeddings=true", "model.C=64", "model.H=2", "data.tokenizer=bytes", "model.V=null"],
    "untied": ["model.C=96", "model.H=4", "model.L=3", "model.rope_theta=5000.0", "model.d_ff=200"],
    "adopted": ["model.tie_embeddings=true", "model.C=64", "model.V=null"],
}
TRAINING = ["model.T=256", "train.B=4", "train.total_steps=40", "train.eval_every=40"]
TRAINING += ["sft.train.total_steps=60", "sft.train.base_lr=0.01"]
WORDS = [
    "the",
    "it's",
    "I'll",
    "they'RE",
    "'S",
    "café",
    "漢字",
    "def",
    "1234",
    "½",
    "Ⅷ",
    "٣٤",
    "😀",
    "e\u0301",
    "ẞ",
    "İ",
]
WORDS += ["<|user|>", "<|eot_id|>", "\0", "\x1b[0m", "ſ"]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\r", "\xa0", "\u3000", "\u2028", "\x85", "\u200b", "\ufeff"]
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
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A run of both phases that has learned a little, of one of several shapes and tokenizers."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [*SHAPES[request.param], *TRAINING]
    if request.param == "adopted":
        make_llama3(folder / "tokenizer.json")
        overrides.append(f"data.tokenizer={folder / 'tokenizer.json'}")
    with composing() as composed:
        return carry_out(load_plan(composed(*smoke("smoke_pipeline", folder / "run", cache_dir), *overrides)))


@torch.no_grad()
def require_greedy(model: GPT, prompt: Sequence[int], said: Sequence[int]) -> None:
    """Check that each id said is the likeliest, or one of two that are as likely."""
    logits = model(torch.tensor([[*prompt, *said]]))[0, len(prompt) - 1 : -1]  # (said, V)
    best, ids = logits.topk(2)
    clear = best[:, 0] - best[:, 1] > MARGIN
    assert clear.float().mean() > 0.9, "the model has learned too little"
    assert torch.equal(torch.tensor(said)[clear], ids[clear, 0])


@pytest.mark.parametrize("version", TRANSFORMERS)
def test_transformers_reads_an_export_as_we_read_the_run(run: Path, version: str, tmp_path: Path) -> None:
    python = make_environment(f"transformers-{version}", TRANSFORMERS[version])
    model, tokenizer = (session := load_session(run)).model, session.tokenizer
    export_llama(model, tokenizer, tmp_path / "out", chats=True)
    prompts = ["The number", "How many are there? " * 5]
    ids = torch.randint(tokenizer.V, (2, 64), generator=torch.Generator().manual_seed(0))
    question: dict[str, Any] = {"folder": str(tmp_path / "out"), "texts": TEXTS, "prompts": prompts, "count": 100}
    question |= {"dialogues": [[{"role": r, "content": c} for r, c in turns] for turns in DIALOGUES]}
    said = ask(python, "transformers_probe", question | {"ids": ids.tolist()})
    assert (said["ids"], said["texts"]) == ([tokenizer.encode(text) for text in TEXTS], TEXTS)
    dialogues = [[Message(role, content) for role, content in turns] for turns in DIALOGUES]  # type: ignore[arg-type]
    turns = [
        [make_turn(message, tokenizer.encode(message.content), tokenizer) for message in dialogue]
        for dialogue in dialogues
    ]
    assert said["dialogues"] == [
        [[id for turn in dialogue for id in turn.ids], [int(t) for turn in dialogue for t in turn.target_mask]]
        for dialogue in turns
    ]
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


@pytest.mark.parametrize("stride", [256, 100])
def test_transformers_computes_the_loss_that_eval_prints(run: Path, stride: int, tmp_path: Path) -> None:
    python = make_environment("transformers-newest", TRANSFORMERS["newest"])
    model, tokenizer = (session := load_session(run)).model, session.tokenizer
    export_llama(model, tokenizer, tmp_path / "out", chats=True)
    texts = [document.text for document in synthetic.read_documents(SourceCfg(kind="synthetic", size=40))]
    texts.append("\n".join(texts) * 3)
    for n, text in enumerate(texts):
        (tmp_path / f"{n}.txt").write_text(text, "utf-8")
    words = [str(run), "--files", *(f"{n}.txt" for n in range(len(texts))), "--stride", str(stride), "--json"]
    done = cli(*words, cwd=tmp_path, script="eval")
    assert done.returncode == 0, done.stderr
    (ours,) = json.loads(done.stdout)[0]["models"]
    ids = [[tokenizer.special[END_OF_TEXT], *tokenizer.encode(text)] for text in texts]
    # A window's last token is only a target, so theirs are longer by one.
    question = {"folder": str(tmp_path / "out"), "stride": stride, "max_length": model.cfg.T + 1}
    question |= {"ids": [id for each in ids for id in each], "lengths": [*map(len, ids)]}
    theirs = ask(python, "transformers_probe", question)
    assert ours["tokens"] == theirs["tokens"] > 3000
    assert ours["loss_per_token"]["value"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", TRANSFORMERS)
def test_a_llama_of_transformers_is_read_as_the_same_network(version: str, tied: bool, tmp_path: Path) -> None:
    """Heads as in SmolLM2-135M, and weights so large that the logits are far apart."""
    python = make_environment(f"transformers-{version}", TRANSFORMERS[version])
    config: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 72,
        "intermediate_size": 200,
        "num_hidden_layers": 3,
    }
    config |= {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 128}
    config |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "initializer_range": 0.2}
    rope = {"rope_theta": 100000.0, "rope_type": "default"}
    config |= {"rope_theta": 100000.0} if version == "4.57" else {"rope_parameters": rope}
    ids = torch.randint(301, (2, 64), generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "theirs"
    question = {"folder": str(folder), "config": config, "ids": ids.tolist(), "shard": "5GB" if tied else "100KB"}
    said = ask(python, "llama_probe", question)
    make_gpt2(folder / "tokenizer.json", ["<|endoftext|>", *(f"<|extra_{n}|>" for n in range(19))])  # 320 entries
    model = open_model(folder).model
    assert (model.cfg.H, model.cfg.H_kv, model.cfg.rope_theta) == (9, 3, 100000.0)
    torch.testing.assert_close(model(ids)[..., :320], torch.tensor(said["logits"]), rtol=1e-5, atol=2e-5)
    model.head_weight.data[320:] = 0.0  # a new token is never the likeliest
    require_greedy(model, ids[0, :8].tolist(), said["generated"])


@torch.no_grad()
def score(model: GPT, ids: list[int]) -> list[float]:
    """Return the log probability of each id but the first, given those before it."""
    scores = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)  # (T, V)
    found: list[float] = scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return found


def make_strings(count: int) -> list[str]:
    """Return strings of words, spaces, marks and characters of all scripts."""
    draw = random.Random(0)
    kinds: list[Callable[[], str]] = [
        lambda: draw.choice(WORDS),
        lambda: draw.choice(SPACES),
        lambda: "".join(chr(draw.randrange(32, 127)) for _ in range(draw.randrange(1, 8))),
        lambda: chr(draw.choice([draw.randrange(0x80, 0xD800), draw.randrange(0xE000, 0x110000)])),
        lambda: chr(draw.randrange(0x80, 0x3000)),
    ]
    return ["".join(draw.choice(kinds)() for _ in range(draw.randrange(1, 12))) for _ in range(count)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3), ("q8_0", 1e-3)])
def test_llama_cpp_predicts_from_a_gguf_file_as_we_do(
    run: Path, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    model, tokenizer = (session := load_session(run / "pretrain")).model, session.tokenizer
    text = "\n".join(document.text for document in synthetic.read_documents(SourceCfg(kind="synthetic")))
    ids = tokenizer.encode(text[:9000])
    windows = [ids[first : first + 251] for first in range(0, 1000, 250)]
    prompts = [window[:40] for window in windows]
    said = ask_llama_cpp(run / "pretrain", dtype, tmp_path, windows=windows, prompts=prompts, V=tokenizer.V)
    ours = [number for window in windows for number in score(model, window)]
    theirs = [number for scores in said["scores"] for number in scores]
    assert len(ours) == len(theirs) == 1000
    assert math.fsum(theirs) == pytest.approx(math.fsum(ours), rel=tolerance)
    if dtype == "float32":
        assert any(len(generated) == 200 for generated, _ in said["generated"])
        for prompt, (generated, _) in zip(prompts, said["generated"], strict=True):
            require_greedy(model, prompt, generated)


def test_llama_cpp_reads_text_and_dialogues_as_we_do_and_ends_an_answer(run: Path, tmp_path: Path) -> None:
    model, tokenizer = (session := load_session(run)).model, session.tokenizer
    texts, turns = make_strings(10_000), DIALOGUES[1][:1] + DIALOGUES[0][:1]
    dialogue = [{"role": role, "content": content} for role, content in turns]
    said = ask_llama_cpp(run, "float32", tmp_path, texts=texts, dialogues=[dialogue])
    assert said["ids"] == [tokenizer.encode(text) for text in texts]
    prompt = encode_prompt([Message(role, content) for role, content in turns], tokenizer)  # type: ignore[arg-type]
    ((asked, generated, stop),) = said["chats"]
    assert (asked, stop) == (prompt, "eos")
    require_greedy(model, prompt, [*generated, tokenizer.special[END_OF_TURN]])


def ask_llama_cpp(run: Path, dtype: str, folder: Path, **question: Any) -> Any:
    """Export to GGUF, and return llama.cpp's answer to a question about the file."""
    python, out = make_environment("llama.cpp", "xllamacpp", "gguf"), folder / "out"
    call(python, "-m", "niels_gpt", "export", run, out, "--to", "gguf", "--dtype", dtype)
    (path,) = out.glob("*.gguf")
    template = ".Messages }}<|{{ .Role }}|>" if run.name == "run" else "<|end_of_text|>{{ .Prompt }}"
    assert all(
        part in (out / "Modelfile").read_text() for part in (f"FROM ./{path.name}", template, "num_ctx 256")
    )
    usual = {"texts": [], "dialogues": [], "prompts": [], "windows": [], "V": 0}
    return ask(python, "llama_cpp_probe", usual | {"path": str(path), "context": 256, "count": 200} | question)
