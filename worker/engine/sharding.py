"""A model's weights, shared by several processes: each holds a part, and gathers a layer's when it is used.

FSDP2 (`fully_shard`) shares the layers. It would hold an embedding, or a head, whole from the first use to the last,
and of a small model that is a fifth. So their rows (tokens) are shared here: of an embedding the rows of a batch's
tokens come together, of a head a block after the other. Every process runs the same program on the same texts, so all
of them meet in the same order, and the results are those of one process to the bit. What is small (the last norm) each
holds whole.

b: batch, s: sequence, n: rows, h: hidden, v: vocabulary
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from worker.engine import onednn
from worker.engine.onednn import linear
from worker.engine.types import CausalLM


def shard(model: CausalLM, device: torch.device) -> CausalLM:
    """Share the weights of a model by all processes of the group; without a group it is moved alone.

    Args:
        model: A model on the CPU, whole in each process. (Of mapped files only what is read is in memory.)
        device: Where this process computes. Its parts go there, a layer after the other.

    Returns:
        The same model, frozen if it is shared. Its products are float32 then, whatever its weights are.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model.requires_grad_(False)
    precision = MixedPrecisionPolicy(param_dtype=torch.float32, cast_forward_inputs=False)
    for module in gathered_modules(model):
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()  # of experts it may be a transposed view
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
    shared: dict[Tensor, SharedRows] = {}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = module.weight
        if weight not in shared:  # tied ones stay tied
            shared[weight] = SharedRows.part(weight, device)
        module._parameters["weight"] = shared[weight]
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor) in (nn.Parameter, Tensor):  # what each process holds whole
            tensor.data = tensor.data.to(device)
    return model


def gathered_modules(model: CausalLM) -> list[nn.Module]:
    """The modules whose weights are gathered at once, one module after the other: layers, or linear modules."""
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inner = {id(one) for layer in layers for one in layer.modules() if one is not layer}
    layers = [layer for layer in layers if id(layer) not in inner]
    return layers or [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]


def whole(weight: Tensor) -> Tensor:
    """A weight with the parts of all processes; all of them must ask for it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


class SharedRows(Tensor):
    """The rows of an embedding, or of a head, that this process holds; it reads as the whole weight [v, h] in float32.

    It is looked up and multiplied. It has no gradient.
    """

    tokens: int
    start: int

    @classmethod
    def part(cls, weight: Tensor, device: torch.device) -> "SharedRows":
        """This process' rows of a weight [v, h]."""
        each = -(-weight.shape[0] // dist.get_world_size())
        start = min(dist.get_rank() * each, weight.shape[0])
        rows: SharedRows = Tensor._make_subclass(cls, weight.detach()[start : start + each].to(device, copy=True))
        rows.tokens, rows.start = weight.shape[0], start
        return rows

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of the whole weight, a block after the other in every process."""
        local = self.as_subclass(Tensor)
        for block in onednn.slices(self.tokens, max(1, onednn.BLOCK // local.shape[1])):
            stop = min(block.stop, self.tokens)
            rows = local.new_zeros(stop - block.start, local.shape[1])
            first, last = max(block.start, self.start), min(stop, self.start + local.shape[0])
            if first < last:
                rows[first - block.start : last - block.start] = local[first - self.start : last - self.start]
            dist.all_reduce(rows)  # of rows and zeros: exact
            yield slice(block.start, stop), rows

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # what the function returns
        """Run a function of torch as if this were the whole weight."""
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name == "dtype":
            return torch.float32
        if name == "linear":
            x, shared, bias = (*args, None)[:3]
            if torch.is_autocast_enabled(x.device.type):  # in 16 bits, whole
                rows = [block.to(torch.get_autocast_dtype(x.device.type)) for _, block in shared.blocks()]
                return func(x, torch.cat(rows), bias)
            product = _SharedLinear.apply(x, shared)  # type: ignore[no-untyped-call]
            return product if bias is None else product + bias
        if name == "embedding":
            return _rows(args[0], args[1])
        own: SharedRows = args[0]
        local = own.as_subclass(Tensor)
        if name in ("shape", "size", "numel"):
            return func(torch.empty(own.tokens, local.shape[1], device="meta"), *args[1:])
        return func(local, *args[1:], **(kwargs or {}))


def _rows(ids: Tensor, shared: SharedRows) -> Tensor:
    """The rows [..., h] of some tokens: each comes from the process that holds it."""
    local = shared.as_subclass(Tensor)
    places = ids - shared.start
    held = (places >= 0) & (places < local.shape[0])
    rows = local.new_zeros(*ids.shape, local.shape[1])
    rows[held] = local[places[held]]
    dist.all_reduce(rows)  # of one row and zeros: exact
    return rows.float()


class SharedContext(Protocol):
    """What a product with shared rows keeps for its backward pass."""

    shared: SharedRows


class _SharedLinear(torch.autograd.Function):
    """x W^T, some rows of W at a time, as `onednn.linear` takes a whole W; with the gradient of x alone."""

    @staticmethod
    def forward(ctx: SharedContext, x: Tensor, shared: SharedRows) -> Tensor:
        ctx.shared = shared
        parts = (linear(x, rows) for _, rows in shared.blocks())
        return torch.cat(list(parts), dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: SharedContext, *grads: Tensor) -> tuple[Tensor, None]:
        products = (linear(grads[0][..., block], rows.T) for block, rows in ctx.shared.blocks())
        return reduce(Tensor.add_, products), None
