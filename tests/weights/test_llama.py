"""Weights for other programs: the layout is Llama's, so its own implementation computes the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from niels_gpt.config import ModelCfg
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
    export_llama(model(), BytesTokenizer(), tmp_path / "out")
    names = {f"model.layers.{n}.{part}.weight" for n in range(2) for part in LAYER}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == names
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["rope_theta"]) == (32, 2, 5000.0)


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


def read_by_llama(network: GPT, folder: Path) -> Any:
    """Export a model and load it into Llama's own implementation."""
    transformers = pytest.importorskip("transformers", reason="needs the extra bench")
    export_llama(network, BytesTokenizer(), folder)
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.long
def test_llamas_own_implementation_computes_the_same_logits(tmp_path: Path) -> None:
    theirs = read_by_llama(model(), tmp_path / "out")
    ids = torch.randint(0, 256, (2, 16))
    torch.testing.assert_close(theirs(ids).logits, model().eval()(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("end", [END_OF_TEXT, END_OF_TURN])
def test_llamas_own_implementation_stops_where_a_text_or_an_answer_ends(tmp_path: Path, end: str) -> None:
    network, id = model(), BytesTokenizer().special[end]
    with torch.no_grad():
        network.embedding.weight[id] = 100 * network.embedding.weight[65]  # so it follows the token 65
    said = read_by_llama(network, tmp_path / "out").generate(
        torch.tensor([[65]]), max_new_tokens=5, do_sample=False
    )
    assert said.tolist() == [[65, id]]
