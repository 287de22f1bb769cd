"""The library: models, data, weights and generation, usable from a notebook.

`import niels_gpt` takes milliseconds: a name below loads its module, and with it torch, when you first use it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from niels_gpt.config import ModelCfg as ModelCfg
    from niels_gpt.errors import NielsError as NielsError
    from niels_gpt.generation.chat import ChatSession as ChatSession
    from niels_gpt.generation.chat import load as load
    from niels_gpt.generation.chat import load_session as load_session
    from niels_gpt.generation.generate import Generator as Generator
    from niels_gpt.generation.generate import generate as generate
    from niels_gpt.generation.sampling import Sampling as Sampling
    from niels_gpt.loss import IGNORE as IGNORE
    from niels_gpt.model.gpt import GPT as GPT
    from niels_gpt.tokenizer import BytesTokenizer as BytesTokenizer
    from niels_gpt.tokenizer import Tokenizer as Tokenizer
    from niels_gpt.tokenizer import load_tokenizer as load_tokenizer
    from niels_gpt.tokenizer import train_bpe as train_bpe
    from niels_gpt.weights.checkpoint import load_model as load_model
    from niels_gpt.weights.checkpoint import read_checkpoint as read_checkpoint
    from niels_gpt.weights.gguf import export_gguf as export_gguf
    from niels_gpt.weights.llama import export_llama as export_llama

_MODULES = {
    "BytesTokenizer": "tokenizer",
    "ChatSession": "generation.chat",
    "GPT": "model.gpt",
    "Generator": "generation.generate",
    "IGNORE": "loss",
    "ModelCfg": "config",
    "NielsError": "errors",
    "Sampling": "generation.sampling",
    "Tokenizer": "tokenizer",
    "export_gguf": "weights.gguf",
    "export_llama": "weights.llama",
    "generate": "generation.generate",
    "load": "generation.chat",
    "load_model": "weights.checkpoint",
    "load_session": "generation.chat",
    "load_tokenizer": "tokenizer",
    "read_checkpoint": "weights.checkpoint",
    "train_bpe": "tokenizer",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), and keep it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("niels_gpt")
    if name not in _MODULES:
        raise AttributeError(f"module 'niels_gpt' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"niels_gpt.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """List the public names too, those not imported yet among them."""
    return sorted({*globals(), *_MODULES, "__version__"})
