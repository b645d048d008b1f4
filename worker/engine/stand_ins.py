"""Hooks of modules that stand for an adapter where tensors have no memory: peft does not run there."""

from collections.abc import Callable

from torch import Tensor, nn


def begin_graph(_: nn.Module, __: object, output: Tensor) -> Tensor:
    """The output of a module, from which a backward pass goes back."""
    return output if output.requires_grad else output.requires_grad_()


def as_adapted(weight: Tensor, rank: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """What the two parts of an adapter of this rank add to a module's output."""
    (d, k), product = weight.shape, nn.functional.linear
    parts = [
        (weight.new_zeros(rank, k, requires_grad=trained), weight.new_zeros(d, rank, requires_grad=trained))
        for trained in (True, False)
    ]

    def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for a, b in parts:
            output = output + product(product(args[0], a), b) * 1.0
        return output

    return add
