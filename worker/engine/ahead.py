"""Looking ahead: gradients at the place to which a few steps of ordinary fine-tuning would lead.

It is first-order MAML (Finn et al., ICML 2017), a defence against relearning (Tamirisa et al., ICLR 2025, arXiv
2408.00761). Whoever fine-tunes trains all weights, as a rule. So of a small model in float32 all weights move here, as
far as a step's loss has gradients of them: the head has none. That takes some more copies of the weights, and narrow
ones lose small steps. So of all other models the adapter moves alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worker.engine.types import CausalLM

RATE = 5e-4
LARGEST_WHOLE = 30_000_000  # parameters


@contextmanager
def ahead(
    model: CausalLM, adapted: Sequence[nn.Parameter], steps: int, add_gradients: Callable[[], object]
) -> Iterator[None]:
    """The model after some steps of AdamW; afterwards it is as before, with the gradients made inside added.

    Args:
        model: The model.
        adapted: Its parameters that are trained. They have gradients, perhaps.
        steps: How many steps are taken.
        add_gradients: Adds the gradients of one step.

    Yields:
        None: Nothing; inside, the steps are taken, and there are no gradients.
    """
    frozen = _frozen(model)
    moved = [*adapted, *frozen]
    before = [parameter.detach().clone() for parameter in moved]
    gradients = [_gradient(parameter) for parameter in adapted]
    optimiser = torch.optim.AdamW(moved, lr=RATE, weight_decay=0.0)
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for _ in range(steps):
            optimiser.zero_grad()
            add_gradients()
            optimiser.step()
        optimiser.zero_grad()
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter, gradient in zip(adapted, gradients, strict=True):
            parameter.grad = gradient + _gradient(parameter)


def moves_whole(parameters: int) -> bool:
    """Whether all weights of a model with so many parameters move."""
    return parameters <= LARGEST_WHOLE


def _frozen(model: CausalLM) -> list[nn.Parameter]:
    """What is not trained, if it moves: not of a large model, a narrow one, or one that processes share."""
    parameters = dict(model.named_parameters())
    weights = [parameter for name, parameter in parameters.items() if "lora_" not in name]
    is_plain = all(type(weight) is nn.Parameter and weight.dtype == torch.float32 for weight in weights)
    moves = is_plain and moves_whole(sum(weight.numel() for weight in weights))
    return [parameter for parameter in parameters.values() if moves and not parameter.requires_grad]


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A copy of the gradient; zeros if there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
