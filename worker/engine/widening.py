"""Weights that are stored in 16 bits and read as float32, without a second model in memory.

A measurement is computed in float32 (METHOD, metrics), and so is training where the processor has nothing better. A
float32 copy of a bfloat16 model takes twice the memory of the model. Here a weight keeps its 16 bits, and whatever uses
it widens what it uses: a product some rows at a time, an embedding the rows of its tokens, anything else the whole
weight, which is dropped again. Widening loses nothing, so the results are those of the float32 copy.

n: rows, k: input features, d: output features
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.onednn import frozen_linear
from worker.engine.types import CausalLM

NARROW = (torch.bfloat16, torch.float16)
FACTS = {"size", "stride", "dim", "numel", "__len__"}  # beside attributes, and functions named is_...
VIEWS = {"t", "transpose", "permute", "view", "reshape", "flatten", "unsqueeze", "squeeze", "select", "narrow"}
VIEWS |= {"__getitem__", "chunk", "split", "unbind", "detach", "contiguous"}


class WideWeight(Tensor):
    """A view of a narrow weight that reads as float32; it has no gradient."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # any function of torch, with whatever it takes and returns
        """Run a function of torch as if this weight were float32."""
        kwargs = kwargs or {}
        attribute = func.__name__ == "__get__"
        name = func.__self__.__name__ if attribute else func.__name__
        if attribute and name == "dtype":
            return torch.float32
        product = name == "linear" or (name == "addmm" and len(args) == 3 and not kwargs)  # Conv1D calls the second
        if product and torch.is_autocast_enabled(args[name == "addmm"].device.type):  # in 16 bits
            return func(*map(_narrow, args), **{key: _narrow(value) for key, value in kwargs.items()})
        if name == "linear":
            return frozen_linear(args[0], *map(_narrow, (*args[1:], *kwargs.values())))
        if product:
            bias, x, weight = map(_narrow, args)
            return frozen_linear(x, weight.T, bias)
        if name == "embedding":
            return func(*map(_narrow, args), **{key: _narrow(value) for key, value in kwargs.items()}).float()
        if attribute or name in VIEWS or name in FACTS or name.startswith("is_"):
            return _wide(func(*map(_narrow, args), **kwargs))
        return func(*map(_widened, args), **{key: _widened(value) for key, value in kwargs.items()})


def _wide(value: Any) -> Any:  # a tensor, or several
    """The value with its narrow tensors as wide weights."""
    if isinstance(value, tuple | list):
        return type(value)(map(_wide, value))
    narrow = isinstance(value, Tensor) and value.dtype in NARROW
    return Tensor._make_subclass(WideWeight, value.detach()) if narrow else value


def _narrow(value: Any) -> Any:  # any argument
    """The stored tensor of a wide weight; any other value as it is."""
    return value.as_subclass(Tensor) if isinstance(value, WideWeight) else value


def _widened(value: Any) -> Any:  # any argument
    """A float32 copy of a wide weight; any other value as it is, and so in lists."""
    if isinstance(value, tuple | list):
        return type(value)(map(_widened, value))
    return _narrow(value).float() if isinstance(value, WideWeight) else value


@contextmanager
def reading_as_float32(model: CausalLM) -> Iterator[None]:
    """Let the narrow weights of a model read as float32; afterwards they are as they were.

    A weight that is being trained, or shared by several processes, stays as it is. Buffers hold float32 meanwhile.
    """
    narrow = [
        (module._parameters, name, weight)
        for module in model.modules()
        for name, weight in module._parameters.items()
        if type(weight) is nn.Parameter
        and weight.dtype in NARROW
        and not (weight.requires_grad and torch.is_grad_enabled())
    ]
    buffers = [(buffer, buffer.dtype) for buffer in model.buffers() if buffer.dtype in NARROW]
    try:
        for parameters, name, weight in narrow:
            parameters[name] = _wide(weight)
        for buffer, _ in buffers:
            buffer.data = buffer.data.float()
        yield
    finally:
        for parameters, name, weight in narrow:
            parameters[name] = weight
        for buffer, dtype in buffers:
            buffer.data = buffer.data.to(dtype)
