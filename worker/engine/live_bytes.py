"""The memory that code would take, without taking it: its tensors are shapes, and their bytes are counted."""

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active, but not those of a model that is there already.

    Attributes:
        live: The bytes of those that are still held.
        peak: The most that were held at once.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begin at zero, with a model."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.live = self.peak = 0
        own = itertools.chain(model.parameters(), model.buffers())
        self._storages = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever the operation returns
        """Run an operation, and count the tensors that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        """Count a tensor's memory once, until nothing holds it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        """A tensor's memory is free again."""
        self._storages.discard(key)
        self.live -= size
