"""Weights for other programs: the layout is Llama's, so its own implementation computes the same logits."""

import json
import re
from pathlib import Path

import jinja2
import pytest
import tokenizers
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from niels_gpt.config import ModelCfg
from niels_gpt.data.chat_template import JINJA, encode_prompt
from niels_gpt.data.readers.records import Message, Role
from niels_gpt.errors import ConfigError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, BytesTokenizer, Tokenizer, train_bpe
from niels_gpt.weights.checkpoint import load_model
from niels_gpt.weights.llama import export_llama
from train.artifacts.checkpointing import TrainState, save_checkpoint
from train.config.schema import TrainCfgSchema
from train.loop.optim import make_optimizer

CFG = ModelCfg(V=256, T=16, C=32, L=2, H=4, d_ff=48, rope_theta=5000.0, tie_embeddings=True)
LAYER = ["input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
LAYER += [f"self_attn.{name}_proj" for name in "qkvo"]


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CFG)


def test_a_saved_model_loads_and_says_the_same(tmp_path: Path) -> None:
    network = model()
    save_checkpoint(tmp_path / "a.pt", TrainState(network, make_optimizer(network, TrainCfgSchema())), {"B": 2})
    loaded, train_cfg = load_model(tmp_path / "a.pt")
    ids = torch.arange(16)[None]
    assert torch.equal(loaded(ids), network.eval()(ids))
    assert loaded.cfg == CFG and not loaded.training and train_cfg["B"] == 2


def test_the_export_has_llamas_names_and_shape(tmp_path: Path) -> None:
    export_llama(model(), BytesTokenizer(), tmp_path / "out", dtype="bfloat16")
    names = {f"model.layers.{n}.{part}.weight" for n in range(2) for part in LAYER}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == names and {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["rope_theta"]) == (32, 2, 5000.0)
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(("chats", "end"), [(False, END_OF_TEXT), (True, END_OF_TURN)])
def test_a_program_that_generates_stops_at_either_end_and_the_tokenizer_names_the_likely_one(
    tmp_path: Path, chats: bool, end: str
) -> None:
    export_llama(model(), BytesTokenizer(), tmp_path / "out", chats=chats)
    for name in ("config.json", "generation_config.json"):
        ends = json.loads((tmp_path / "out" / name).read_text())["eos_token_id"]
        assert ends == [BytesTokenizer().special[token] for token in (END_OF_TEXT, END_OF_TURN)]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token"] == end


def test_the_exported_chat_template_gives_our_prompt(
    both_tokenizers: tuple[Tokenizer, tokenizers.Tokenizer],
) -> None:
    ours, theirs = both_tokenizers
    template = jinja2.Template(re.sub("{%- (end)?generation %}", "", JINJA))  # marks that only others know
    turns: list[tuple[Role, str]] = [("system", " Be\nnice. "), ("user", "\n"), ("assistant", ""), ("user", "é")]
    text = template.render(messages=[{"role": r, "content": c} for r, c in turns], add_generation_prompt=True)
    assert theirs.encode(text, add_special_tokens=False).ids == encode_prompt([Message(*t) for t in turns], ours)


@pytest.fixture(scope="module", params=[BytesTokenizer(), train_bpe(["the cat sat"], 263)], ids=["bytes", "bpe"])
def both_tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours and, as Hugging Face's library reads it, its export."""
    out = tmp_path_factory.mktemp("export") / "out"
    export_llama(model(), request.param, out)
    return request.param, tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))


@given(content=st.binary() | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))
def test_others_read_the_exported_tokenizer_and_it_gives_them_the_same_ids(
    both_tokenizers: tuple[Tokenizer, tokenizers.Tokenizer], content: bytes
) -> None:
    ours, theirs = both_tokenizers
    text = content.decode("utf-8", "replace")
    assume(not any(token in text for token in ours.special))
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert (ids, theirs.decode(ids)) == (ours.encode(text), text)


def test_the_exported_tokenizer_reads_a_special_token_where_it_is_spelt(
    both_tokenizers: tuple[Tokenizer, tokenizers.Tokenizer],
) -> None:
    ours, theirs = both_tokenizers
    assert theirs.get_vocab_size() == ours.V
    for token, id in ours.special.items():
        assert theirs.encode(f"a{token}b").ids == [*ours.encode("a"), id, *ours.encode("b")]


def test_the_export_overwrites_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already exists"):
        export_llama(model(), BytesTokenizer(), tmp_path)
    assert not list(tmp_path.iterdir())
