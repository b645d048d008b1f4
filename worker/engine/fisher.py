"""Which rows of a weight matter to the forget set more than to the retain set (Cha et al., Eq. 5 and 6).

**Memory.** F_forget and F_retain of a weight are both wanted in full before their ratio's rows are summed: 8 bytes
a weight. A 7B model of the Llama shape has 32 layers of q and v (2 x 4096 x 4096) and the feed-forward (3 x 4096 x
11008), 5.4e9 target weights: 43 GB. So the modules are taken in groups whose sums stay under `memory_bytes` (4 GiB:
eleven groups of three layers), each with passes of its own over both sets. A pass runs the backward only down to the
group's first module, so that eleven groups cost 11 forwards and the work of 6 backwards, not 11. Activations and
their gradients are held for one batch; no weight gradient is held but one module's for one sequence (180 MB there).

b: batch, s: sequence, d: output features, k: input features
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.adapter import weight_matrix
from worker.engine.data import chunks, pad_batch
from worker.engine.device import model_device
from worker.engine.errors import InputError
from worker.engine.head import Head, hidden_states
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import of_hidden
from worker.engine.products import fast_products, product

MEMORY_BYTES = 4 * 2**30


def fisher_diagonal(
    model: Any,
    sequences: Sequence[list[int]],
    target_modules: Sequence[str],
    *,
    batch_size: int = 8,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Empirical Fisher of each target weight: the mean over sequences of the squared gradient of its NLL.

    Per sequence the gradient of W [d, k] is `sum over s of g[s, :]^T a[s, :]`, with a the module's input and
    g the gradient of that sequence's NLL on its output, so batches give per-sequence gradients without a
    pass for each, and no weight gradient of the whole model is ever held. (The published code, csm9493/
    efficient-llm-unlearning at 272484a, squares the gradient of a batch's mean instead.)

    Args:
        model: A causal language model.
        sequences: Token ids, two or more each.
        target_modules: Full names of `nn.Linear` or `Conv1D` modules.
        batch_size: Sequences in one backward pass.
        progress: Told the fraction done, 0..1.

    Returns:
        Module name -> float32 [d, k], on the model's device.

    Raises:
        InputError: A target module is not run when the model predicts text.
    """
    sums: dict[str, Tensor] = {}
    rows = [0]  # sequences in the batch under way
    device = model_device(model)
    done = 0
    with _accumulating(model, target_modules, sums, rows):
        for part in chunks(sequences, batch_size):
            input_ids, mask, labels = (t.to(device) for t in pad_batch(part))
            rows[0] = len(part)
            with torch.enable_grad():
                hidden = hidden_states(model, input_ids, mask, use_cache=False)
                # A sum over tokens: the gradient of each row is that of its own sequence's NLL.
                if hidden.requires_grad:
                    torch.autograd.backward(of_hidden(Head(model), hidden, labels, cross_entropy_rows))
            done += len(part)
            progress(done / len(sequences))
    silent = [name for name in target_modules if name not in sums]
    if silent:
        raise InputError(f"target_modules: {silent[0]} takes no part in predicting text")
    return {name: total.div_(len(sequences)) for name, total in sums.items()}


@contextmanager
def _accumulating(
    model: Any, target_modules: Sequence[str], sums: dict[str, Tensor], rows: list[int]
) -> Iterator[None]:
    """While inside, every backward pass adds its sequences' squared weight gradients to `sums`."""
    trained = {p: p.requires_grad for p in model.parameters()}
    training = model.training
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()  # the lowest target: the backward pass ends here
            add = partial(_add_squares, sums, name, rows, args[0].detach())
            output.register_hook(add)  # type: ignore[no-untyped-call]

        hooks.append(module.register_forward_hook(forward))

    for parameter in trained:
        parameter.requires_grad_(False)
    model.eval()
    for name in target_modules:
        watch(name, model.get_submodule(name))
    try:
        with fast_products(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, value in trained.items():
            parameter.requires_grad_(value)
        model.train(training)


def _add_squares(sums: dict[str, Tensor], name: str, rows: list[int], activations: Tensor, grad: Tensor) -> None:
    """Add sum over b of (g_b^T a_b)^2, one sequence at a time so that one [d, k] is held, not b of them.

    Some families (OPT) flatten batch and sequence before their feed-forward layers: both are put apart again.
    """
    activations, grad = (t.float().reshape(rows[0], -1, t.shape[-1]) for t in (activations, grad))
    if name not in sums:
        sums[name] = torch.zeros(grad.shape[-1], activations.shape[-1], device=grad.device)
    for a, g in zip(activations, grad, strict=True):  # a: [s, k], g: [s, d]
        square = product(g.T, a.T)
        sums[name].addcmul_(square, square)


def row_importance(
    model: Any,
    forget: Sequence[list[int]],
    retain: Sequence[list[int]],
    target_modules: Sequence[str],
    *,
    eps: float = 0.1,
    absolute_eps: float | None = None,
    batch_size: int = 8,
    memory_bytes: int = MEMORY_BYTES,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Tensor]:
    """w_i = sqrt(sum over j of F_forget[i, j] / (F_retain[i, j] + eps)), normalised to mean 1.

    The paper has no eps; its code adds 1e-5 absolute, which is of the order of F_retain itself and so hides
    it. Here eps is relative to mean(F_retain). B*A* does not depend on the scale of w, but the split between
    B and A does, and with it Adam's dynamics: hence the mean of 1.

    Args:
        model: A causal language model.
        forget: Token ids of the forget set.
        retain: Token ids of the retain set.
        target_modules: Full names of the modules to weigh.
        eps: Relative to the mean retain Fisher of the module.
        absolute_eps: The published code's variant, for parity runs; replaces `eps`.
        batch_size: Sequences in one backward pass.
        memory_bytes: What both sides' sums may take at once; more passes where it is small.
        progress: Told the fraction done, 0..1.

    Returns:
        Module name -> float32 [d], mean 1.
    """
    groups = module_groups(model, target_modules, memory_bytes)
    sides, share = (forget, retain), len(forget) / (len(forget) + len(retain))
    found: dict[str, Tensor] = {}
    for index, names in enumerate(groups):
        of_forget, of_retain = (
            fisher_diagonal(
                model, side, names, batch_size=batch_size,
                progress=lambda f, index=index, start=start, size=size: progress(  # type: ignore[misc]
                    (index + start + f * size) / len(groups)
                ),
            )
            for side, start, size in zip(sides, (0.0, share), (share, 1 - share), strict=True)
        )  # fmt: skip
        found |= {name: _rows(of_forget.pop(name), of_retain.pop(name), eps, absolute_eps) for name in names}
    return found


def module_groups(model: Any, target_modules: Sequence[str], memory_bytes: int) -> list[list[str]]:
    """Consecutive modules whose float32 sums for two sides stay within `memory_bytes`; one module at least."""
    groups: list[list[str]] = []
    room = 0
    for name in target_modules:
        size = 8 * weight_matrix(model.get_submodule(name)).numel()
        if size > room:
            groups.append([])
            room = memory_bytes
        groups[-1].append(name)
        room -= size
    return groups


def _rows(of_forget: Tensor, of_retain: Tensor, eps: float, absolute_eps: float | None) -> Tensor:
    floor = absolute_eps if absolute_eps is not None else eps * float(of_retain.mean()) or 1e-30
    importance = (of_forget / (of_retain + floor)).sum(dim=1).sqrt()
    mean = importance.mean()
    return importance / mean if mean > 0 else torch.ones_like(importance)
