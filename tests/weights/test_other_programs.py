"""What others make of an export, each in an environment of its own: the same ids, masks, answers and losses."""

import json
import re
from collections.abc import Sequence
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
    "grouped": ["model.tie_embeddings=true", "model.C=64", "model.H=4", "model.H_kv=2"],
    "adopted": ["model.tie_embeddings=true", "model.C=64", "model.V=null"],
}
TRAINING = ["model.T=256", "train.B=4", "train.total_steps=40", "train.eval_every=40"]
TRAINING += ["sft.train.total_steps=60", "sft.train.base_lr=0.01"]
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


LLAMA_CPP = ("llama.cpp", "xllamacpp", "gguf")
EXPORTS = {
    "hf": (("mlx-lm", "mlx-lm", "mlx[cpu]"), "float32", ["transformers", "mlx-lm"]),
    "f32": (LLAMA_CPP, "float32", ["xllamacpp"]),
    "f16": (LLAMA_CPP, "float16", ["xllamacpp"]),
    "q8_0": (LLAMA_CPP, "q8_0", ["xllamacpp"]),
}


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("phase", ["pretrain", "sft"])
def test_verify_finds_that_other_programs_agree(run: Path, export: str, phase: str, tmp_path: Path) -> None:
    environment, dtype, programs = EXPORTS[export]
    words = ["--to", "hf" if export == "hf" else "gguf", "--dtype", dtype, "--verify"]
    told = call(make_environment(*environment), "-m", "niels_gpt", "export", run / phase, tmp_path / "out", *words)
    assert re.findall(r"^(\S+) \d", told, re.MULTILINE) == programs
    assert (
        told.count("token ids: equal for 10,000 of 10,000 texts") == told.count("prompt: equal") == len(programs)
    )
    assert told.count(" sampled tokens, ours ") == len(programs)
    greedy = re.findall(r"greedy tokens: equal for ([\d,]+) of ([\d,]+)", told)
    for same, counted in greedy:
        assert same == counted and int(counted.replace(",", "")) >= (500 if phase == "pretrain" else 5)
    if export != "hf":
        (path,), modelfile = (tmp_path / "out").glob("*.gguf"), (tmp_path / "out" / "Modelfile").read_text()
        template = ".Messages }}<|{{ .Role }}|>" if phase == "sft" else "<|end_of_text|>{{ .Prompt }}"
        assert all(part in modelfile for part in (f"FROM ./{path.name}", template, "num_ctx 256"))
