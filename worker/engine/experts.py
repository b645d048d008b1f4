"""A model's experts as modules of their own, so that an adapter, a Fisher estimate and a plan see linear modules.

transformers keeps the experts of a layer in two stacked parameters:

    experts.gate_up_proj [e, 2i, h]  ->  experts.0.gate_up_proj.weight [2i, h], experts.1.gate_up_proj.weight ...
    experts.down_proj    [e, h, i]   ->  experts.0.down_proj.weight [h, i], experts.1.down_proj.weight ...

The new weights are views of the stacked ones: nothing is copied. Families that multiply all experts at once in code of
their own (Llama 4, JetMoE) stay as they are.

e: experts, i: intermediate, h: hidden, n: tokens, t: experts of a token
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from worker.engine.types import CausalLM


class Layer(Protocol):
    """What transformers' modules have in common that hold the experts of a layer, and what is put into them."""

    num_experts: int
    is_transposed: bool
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    training: bool
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]
    _modules: dict[str, "Expert"]
    _parameters: dict[str, nn.Parameter]


Expert: TypeAlias = nn.ModuleDict  # the name of a projection -> nn.Linear


def separate_experts(model: CausalLM) -> None:
    """Make a linear module of each expert's projections, in place; what is separate already stays so."""
    for layer in list(_layers(model).values()):
        if "down_proj" in layer._parameters:
            _separate(layer)


def join_experts(model: CausalLM) -> None:
    """Stack the experts' weights again, as transformers reads and saves them."""
    for layer in separated(model).values():
        experts = _take_out(layer)
        for name in _projections(layer):
            linear = [cast(nn.Linear, expert[name]) for expert in experts]
            weights = torch.stack([one.weight.detach() for one in linear])  # of one layer at a time: a copy
            layer._parameters[name] = _like(weights.mT if layer.is_transposed else weights, linear[0].weight)
            if layer.has_bias:
                biases = torch.stack([one.bias.detach() for one in linear])
                layer._parameters[f"{name}_bias"] = _like(biases, linear[0].bias)


@contextmanager
def experts_apart(model: CausalLM) -> Iterator[None]:
    """While active, the model's experts are separate; afterwards its parameters are the same objects as before.

    Nobody may move the weights meanwhile, or write to them but for a while (`worker.engine.ahead`).
    """
    stacked = [
        (layer, dict(layer._parameters)) for layer in _layers(model).values() if "down_proj" in layer._parameters
    ]
    try:
        separate_experts(model)
        yield
    finally:
        for layer, parameters in stacked:
            if isinstance(layer, _Separate):
                _take_out(layer)
            layer._parameters.update(parameters)


def separated(model: CausalLM) -> dict[str, Layer]:
    """Name -> module, of all that hold separate experts."""
    return {name: layer for name, layer in _layers(model).items() if isinstance(layer, _Separate)}


def _layers(model: CausalLM) -> dict[str, Layer]:
    """Name -> module, of all that hold experts, stacked or separate."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "is_transposed")}


def _projections(layer: Layer) -> tuple[str, str]:
    """The names of an expert's two products."""
    return "gate_up_proj" if layer.has_gate else "up_proj", "down_proj"


def _separate(layer: Layer) -> None:
    """Take the stacked parameters of a layer's experts apart."""
    stacked = {
        name: (layer._parameters.pop(name), layer._parameters.pop(f"{name}_bias", None)) for name in _projections(layer)
    }
    for index in range(layer.num_experts):
        linear = {name: _linear(index, *both, transposed=layer.is_transposed) for name, both in stacked.items()}
        layer._modules[str(index)] = nn.ModuleDict(linear).train(layer.training)
    layer.__class__ = _with_separate_forward(type(layer))


def _take_out(layer: Layer) -> list[Expert]:
    """Take the separate experts out of a layer, and return them."""
    layer.__class__ = type(layer).__bases__[1]
    return [layer._modules.pop(str(index)) for index in range(layer.num_experts)]


def _linear(index: int, weights: nn.Parameter, biases: nn.Parameter | None, *, transposed: bool) -> nn.Linear:
    """One product of one expert, whose weight [d, k] is a view."""
    weight = weights.detach()[index]
    weight = weight.T if transposed else weight
    d, k = weight.shape
    linear = nn.Linear(k, d, bias=biases is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=weights.requires_grad)
    if biases is not None:
        linear.bias = nn.Parameter(biases.detach()[index], requires_grad=biases.requires_grad)
    return linear


def _like(values: Tensor, separate: Tensor) -> nn.Parameter:
    """A stacked parameter that is trained if the separate ones were."""
    return nn.Parameter(values.contiguous(), requires_grad=separate.requires_grad)


@cache
def _with_separate_forward(stacked: type) -> type:
    """A class whose objects compute with separate experts, in all else as those of a class of transformers.

    A forward that is put into an object would refer to it, and a model that nobody uses would stay in memory.
    """
    return type(stacked.__name__, (_Separate, stacked), {})


class _Separate:
    """The forward of a layer whose experts are separate."""

    def forward(self: Layer, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs.

        Args:
            hidden: [n, h].
            chosen: Indices of experts [n, t].
            shares: Their weights [n, t].

        Returns:
            [n, h].
        """
        total = torch.zeros_like(hidden)
        up, down = _projections(self)
        for index, pairs in _routes(chosen, self.num_experts):
            expert, tokens = self._modules[str(index)], pairs // chosen.shape[-1]
            inner = expert[up](hidden[tokens])
            output = expert[down](self._apply_gate(inner) if self.has_gate else self.act_fn(inner))
            if self.has_post_expert_norm:
                output = self.post_expert_norm(output)
            weighted = output * shares.reshape(-1)[pairs, None]
            total = total.index_add(0, tokens, weighted.to(total.dtype))
        return total


def _routes(chosen: Tensor, experts: int) -> Iterator[tuple[int, Tensor]]:
    """(expert, positions in `chosen` [n, t] read row by row) of each expert that a token has chosen.

    Shapes without numbers all choose the first one: their outputs take the same memory, in far fewer steps.
    """
    flat = chosen.reshape(-1)
    counts = [len(flat)] if isinstance(flat, FakeTensor) else torch.bincount(flat, minlength=experts).tolist()
    for index, pairs in enumerate(torch.split(flat.argsort(stable=True), counts)):
        if len(pairs):
            yield index, pairs
