"""The device and the precision in which a model runs."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from worker.engine.onednn import fast_linear_layers
from worker.engine.types import CausalLM
from worker.engine.widening import reading_as_float32


def resolve_device(name: str = "auto") -> torch.device:
    """The device a policy names; "auto" takes CUDA if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype of weights that a policy names; "auto" is bfloat16 on a CUDA device that has it, else as stored."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_fast_bfloat16(device) else stored
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
def _computing(model: CausalLM, *, gradients: bool, narrow: bool) -> Iterator[None]:
    """Evaluation mode, and products in bfloat16 if they are to be narrow, else in float32."""
    was_training = model.training
    model.eval()
    try:
        narrowing = torch.autocast(model_device(model).type, torch.bfloat16, enabled=narrow)
        differentiating = torch.enable_grad() if gradients else torch.no_grad()
        with differentiating, narrowing, _products(model, narrow=narrow), without_router_logits(model):
            yield
    finally:
        model.train(was_training)


@contextmanager
def training(model: CausalLM, dtype: str, *, checkpoint_activations: bool = False) -> Iterator[None]:
    """Evaluation mode with gradients, and products in the dtype that a policy names.

    With `checkpoint_activations` the backward pass computes each layer again. There is no dropout: LoRA has none here,
    and the base's own dropout would make a resumed run differ.
    """
    narrow = trains_in_bfloat16(dtype, model_device(model))
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if checkpoint_activations else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        with _computing(model, gradients=True, narrow=narrow):
            yield
    finally:
        for layer in layers:
            del layer.forward


def _products(model: CausalLM, *, narrow: bool) -> AbstractContextManager[None]:
    """What training computes its products with: narrow ones on a CPU leave the rest in float32."""
    if not narrow:
        return float32_products(model)
    return reading_as_float32(model) if model_device(model).type == "cpu" else nullcontext()


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def measuring(model: CausalLM) -> Iterator[None]:
    """Evaluation mode, no gradients, everything computed in float32, whatever the dtype of the weights.

    In bfloat16 logits tie often and hidden states change with the batch's shape, so a greedy continuation would depend
    on the other sequences in its batch; a measurement must not (METHOD, metrics).
    """
    with _computing(model, gradients=False, narrow=False):
        yield


@contextmanager
def drawing(model: CausalLM, dtype: str) -> Iterator[None]:
    """`measuring`, but with products in the dtype that a policy names for training.

    Of a float32 weight in one process there is a narrow copy meanwhile. A weight that several processes share is
    narrowed for each token.
    """
    narrow = trains_in_bfloat16(dtype, model_device(model))
    wide = [
        weight for weight in model.parameters() if weight.dtype == torch.float32 and not isinstance(weight, DTensor)
    ]
    frozen = [weight for weight in wide if narrow and not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_()  # autocast keeps the copies of such weights alone
    try:
        with _computing(model, gradients=False, narrow=narrow):
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


@contextmanager
def float32_products(model: CausalLM) -> Iterator[None]:
    """Let the frozen weights of a model read as float32, and let a CPU compute its products by oneDNN."""
    with reading_as_float32(model), fast_linear_layers(model):
        yield
