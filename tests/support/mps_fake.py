"""Prints the dtypes of a GPT on a fake mps device, as JSON: a process of its own, since gradients would abort it.

The casts are the real ones: the rules of autocast on mps are compiled into every build of PyTorch, and fake
tensors, which hold no numbers, go through them.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from niels_gpt import loss
from niels_gpt.config import ModelCfg
from niels_gpt.model.gpt import GPT
from train.config.schema import TrainCfgSchema
from train.loop.amp import amp_factory

MPS = torch.device("mps")
CFG = ModelCfg(V=256, T=8, C=32, L=2, H=2, d_ff=48, dropout=0.1, tie_embeddings=True)
Seen = dict[str, list[str]]  # of each module "NAME.in" and "NAME.out", and of what is no module


def name_of(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


class Attended(TorchFunctionMode):
    """Stands in for the kernels of attention, which are of Metal; notes the dtypes that reach them."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            for each, tensor in zip("qkv", args, strict=False):
                self.note(f"attention.{each}", tensor)
            if "attn_mask" in kwargs:
                assert kwargs.keys() == {"attn_mask"}, "a mask beside is_causal is an error"
                assert kwargs["attn_mask"].shape == (2, 1, CFG.T, CFG.T)
                self.note("attention.mask", kwargs["attn_mask"])
            return torch.empty_like(args[0])
        if func is Tensor.__getitem__:  # the real one would set the device first, which this build cannot do
            tensor, index = args
            if index is None:
                return tensor.unsqueeze(0)
            assert isinstance(index, slice) and index.step is None
            return torch.ops.aten.slice(tensor, 0, index.start, index.stop)
        out = func(*args, **(kwargs or {}))
        if func is F.cross_entropy:
            self.note("cross_entropy.in", args[0])
            self.note("cross_entropy.out", out)
        if func in (Tensor.mul, Tensor.add) and len({one.dtype for one in args if isinstance(one, Tensor)}) > 1:
            self.note(f"mixed {func.__name__}", out)
        return out

    def note(self, what: str, tensor: Tensor) -> None:
        self.seen.setdefault(what, []).append(name_of(tensor))


def on_mps(mode: FakeTensorMode, tensor: Tensor) -> FakeTensor:
    return FakeTensor(mode, tensor, torch.device("mps:0"))


def fake_gpt(mode: FakeTensorMode) -> GPT:
    with torch.device("meta"):
        model = GPT(CFG)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(on_mps(mode, parameter.detach()), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, on_mps(mode, buffer))
    return model


def watch(model: nn.Module, seen: Seen) -> None:
    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            assert args[0].device.type == "mps" and out.device.type == "mps"
            seen.setdefault(f"{name}.in", []).append(name_of(args[0]))
            seen.setdefault(f"{name}.out", []).append(name_of(out))

        return hook

    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            module.register_forward_hook(note(name))


@torch.no_grad()
def observe(settings: dict[str, object], *, training: bool, rows_at_once: int) -> Seen:
    """Return the dtypes seen in a forward pass to the loss and in one to the logits."""
    loss.ROWS = rows_at_once
    amp = amp_factory(MPS, TrainCfgSchema.model_validate(settings))
    seen: Seen = {}
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        model = fake_gpt(mode).train(training)
        watch(model, seen)
        ids = on_mps(mode, torch.empty(2, CFG.T, dtype=torch.int64, device="meta"))
        with Attended(seen), amp():
            seen["loss"] = [name_of(model.loss(ids, ids, 16.0))]
            seen["logits"] = [name_of(model(ids))]
            model.loss(ids, ids, 16.0, ids)  # whatever numbers the segments
            seen["a bare product"] = [name_of(model.embedding.weight.mm(model.embedding.weight.t()))]
    return seen


if __name__ == "__main__":
    print(json.dumps([observe(**asked) for asked in json.loads(sys.argv[1])]))
