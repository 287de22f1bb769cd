"""Weights for other programs: the layout is Llama's, so its own implementation computes the same logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from niels_gpt.config import ModelCfg
from niels_gpt.errors import ConfigError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import BytesTokenizer
from niels_gpt.weights import export_llama, llama_config, load_model
from train.checkpointing import TrainState, save
from train.optim import make_optimizer
from train.schema import TrainCfgSchema

CFG = ModelCfg(V=256, T=16, C=32, L=2, H=4, d_ff=48, rope_theta=5000.0)
LAYER = ["input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
LAYER += [f"self_attn.{name}_proj" for name in "qkvo"]


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CFG)


def test_a_saved_model_loads_and_says_the_same(tmp_path: Path) -> None:
    network = model()
    save(tmp_path / "a.pt", TrainState(network, make_optimizer(network, TrainCfgSchema())), {})
    loaded = load_model(tmp_path / "a.pt")
    ids = torch.arange(16)[None]
    assert torch.equal(loaded(ids), network.eval()(ids))
    assert loaded.cfg == CFG and not loaded.training


def test_the_export_has_llamas_names_and_shape(tmp_path: Path) -> None:
    export_llama(model(), BytesTokenizer(), tmp_path / "out")
    names = {f"model.layers.{n}.{part}.weight" for n in range(2) for part in LAYER}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == names
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["rope_theta"]) == (32, 2, 5000.0)
    assert config == llama_config(CFG, BytesTokenizer())


def test_the_export_overwrites_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        export_llama(model(), BytesTokenizer(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_llamas_own_implementation_computes_the_same_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (extra: none needs it)"
    )
    export_llama(model(), BytesTokenizer(), tmp_path / "out")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.randint(0, 256, (2, 16))
    torch.testing.assert_close(theirs(ids).logits, model().eval()(ids), rtol=1e-4, atol=1e-5)
