"""The device and the precision in which a model runs."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from worker.engine.onednn import fast_linear_layers
from worker.engine.types import CausalLM


def resolve_device(name: str = "auto") -> torch.device:
    """The device a policy names; "auto" takes CUDA if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype a policy names; "auto" is bfloat16 on a CUDA device that has it, float32 otherwise."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_fast_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 products on the device.

    CUDA says so itself; a CPU needs AVX-512 BF16 or AMX instructions.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch >= 2.10
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def trains_in_bfloat16(name: str, device: torch.device) -> bool:
    """Whether training computes its products in bfloat16, by a policy's `train_dtype`."""
    return name == "bfloat16" or (name == "auto" and has_fast_bfloat16(device))


@contextmanager
def without_router_logits(model: CausalLM) -> Iterator[None]:
    """Let a forward pass compute no training loss of its experts' routers, whatever the configuration says."""
    wanted = getattr(model.config, "output_router_logits", None)
    if wanted:
        model.config.output_router_logits = False
    try:
        yield
    finally:
        if wanted:
            model.config.output_router_logits = wanted


@contextmanager
def training(model: CausalLM, dtype: str, *, checkpoint_activations: bool = False) -> Iterator[None]:
    """Evaluation mode with gradients, and products in the dtype that a policy names.

    With `checkpoint_activations` the backward pass computes each layer again. There is no dropout: LoRA has none here,
    and the base's own dropout would make a resumed run differ.
    """
    device = model_device(model)
    narrow = trains_in_bfloat16(dtype, device)
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if checkpoint_activations else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    was_training = model.training
    model.eval()
    try:
        linear_layers = nullcontext() if narrow else fast_linear_layers(model)
        narrowing = torch.autocast(device.type, torch.bfloat16, enabled=narrow)
        with torch.enable_grad(), narrowing, linear_layers, without_router_logits(model):
            yield
    finally:
        model.train(was_training)
        for layer in layers:
            del layer.forward


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def measuring(model: CausalLM) -> Iterator[None]:
    """Evaluation mode, no gradients, everything computed in float32.

    Narrower weights are widened meanwhile and narrowed again afterwards, which loses nothing. In bfloat16 logits tie
    often and hidden states change with the batch's shape, so a greedy continuation would depend on the other sequences
    in its batch; a measurement must not (METHOD, metrics). This takes 4 bytes a weight: 28 GB for a 7B model.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    narrow = [(t, t.dtype) for t in tensors if t.dtype in (torch.bfloat16, torch.float16)]
    was_training = model.training
    model.eval()
    try:
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        with torch.no_grad(), fast_linear_layers(model), without_router_logits(model):
            yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)
        model.train(was_training)
