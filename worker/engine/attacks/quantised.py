"""Rounding the weights as people do who deploy a model: what unlearning hides in small changes may come back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.engine.adapter import weight_matrix
from worker.engine.attacks.scores import Scores
from worker.engine.attacks.subject import Subject
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM

GROUP = 32  # weights that share a scale in GGUF's blocks and in int4
NF4_GROUP = 64
# Quantiles of a normal distribution (Dettmers et al., NeurIPS 2023, arXiv 2305.14314, appendix E).
NF4_BELOW = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0.0]
NF4_ABOVE = [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0]


def _symmetric(groups: Tensor, levels: int) -> Tensor:
    """Whole multiples of a scale that maps the largest value to `levels`."""
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / levels
    return (groups / scale).round() * scale


def _q4_0(groups: Tensor) -> Tensor:
    """GGUF's Q4_0: 16 levels, and the value of largest magnitude is -8 of them."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half().float()
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return ((groups * inverse + 8.5).floor().clamp(0, 15) - 8) * scale


def _q8_0(groups: Tensor) -> Tensor:
    """GGUF's Q8_0: 255 levels, scales in half precision."""
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
    return (groups / scale.clamp(min=1e-12)).round().clamp(-127, 127) * scale


def _nf4(groups: Tensor) -> Tensor:
    """NF4: the nearest of 16 quantiles of a normal distribution, scaled by the largest value."""
    code = torch.tensor(NF4_BELOW + NF4_ABOVE, device=groups.device)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    return code[torch.bucketize(groups / scale, (code[1:] + code[:-1]) / 2)] * scale


ROUNDINGS: dict[str, tuple[Callable[[Tensor], Tensor], int | None]] = {  # rounding of groups [n, group], their size
    "int8 per channel": (lambda groups: _symmetric(groups, 127), None),
    "int4": (lambda groups: _symmetric(groups, 7), GROUP),
    "q8_0": (_q8_0, GROUP),
    "q4_0": (_q4_0, GROUP),
    "nf4": (_nf4, NF4_GROUP),
}


@contextmanager
def rounded(model: CausalLM, name: str) -> Iterator[None]:
    """The model with rounded weights in every linear module but the head, one module's in memory at a time.

    Args:
        model: The model; its own weights do not change.
        name: A name in ROUNDINGS.

    Yields:
        None: Nothing.
    """
    rounding, size = ROUNDINGS[name]
    head, own = model.get_output_embeddings(), dict[nn.Module, Tensor]()

    def before(module: nn.Module, _: object) -> None:
        own[module] = module._parameters["weight"]  # type: ignore[assignment]  # a linear module has one
        weight = weight_matrix(module).detach()
        group = size if size and weight.shape[1] % size == 0 else weight.shape[1]
        values = rounding(weight.float().reshape(-1, group)).reshape(weight.shape).to(weight.dtype)
        module._parameters["weight"] = nn.Parameter(values.T if isinstance(module, Conv1D) else values, False)

    def after(module: nn.Module, *_: object) -> None:
        module._parameters["weight"] = own.pop(module)  # type: ignore[assignment]  # a parameter, or a view of one

    hooks = [
        hook
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
        for hook in (module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def quantised(subject: Subject, progress: Progress = no_progress) -> Scores:
    """For each text, MA (Tirumala et al., 2022) of the rounding that brings most of it back."""
    by_rounding, share = [], 1 / len(ROUNDINGS)
    for done, name in enumerate(ROUNDINGS):
        with rounded(subject.model, name):
            by_rounding.append(subject.accuracies(partial_progress(progress, done * share, share)))
    forget, unseen = ([max(values) for values in zip(*side, strict=True)] for side in zip(*by_rounding, strict=True))
    return Scores(forget, unseen)
