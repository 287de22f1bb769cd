"""Count the bytes of live tensors during a step."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live tensors that were made under it; `peak` is the most so far.

    Allocators hide freed pages, so it counts storages after each operation; it does not see a kernel's workspace.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._live: dict[int, int] = {}  # a storage's address -> its bytes

    @property
    def count(self) -> int:
        """Number of live storages that were made under it."""
        return len(self._live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, then count the storages that it made."""
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _list_storages((args, kwargs))}
        for storage in _list_storages(out):
            if storage._cdata not in given and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._remove, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def _remove(self, address: int) -> None:
        self.now -= self._live.pop(address)


def _list_storages(tree: Any) -> list[torch.UntypedStorage]:
    """Return the storages of all tensors in nested arguments."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
