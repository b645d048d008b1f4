"""Looking ahead: gradients at the place to which a few steps of ordinary fine-tuning would lead.

It is first-order MAML (Finn et al., ICML 2017), a defence against relearning (Tamirisa et al., ICLR 2025, arXiv
2408.00761).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

RATE = 5e-4


@contextmanager
def ahead(parameters: Sequence[torch.nn.Parameter], steps: int, add_gradients: Callable[[], object]) -> Iterator[None]:
    """The parameters after some steps of AdamW; afterwards they are as before, with the gradients made inside added.

    Args:
        parameters: They have gradients, perhaps.
        steps: How many steps are taken.
        add_gradients: Adds the gradients of one step.

    Yields:
        None: Nothing; inside, the steps are taken, and there are no gradients.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = [_gradient(parameter) for parameter in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    try:
        for _ in range(steps):
            optimiser.zero_grad()
            add_gradients()
            optimiser.step()
        optimiser.zero_grad()
        yield
    finally:
        with torch.no_grad():
            for parameter, value, gradient in zip(parameters, before, gradients, strict=True):
                parameter.copy_(value)
                parameter.grad = gradient + _gradient(parameter)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """A copy of the gradient; zeros if there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
