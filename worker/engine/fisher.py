"""Which rows of a weight matter to the forget set more than to the retain set (Cha et al., Eq. 5 and 6).

**Memory.** F_forget and F_retain of a weight are both needed in full before their ratio's rows are summed: 8 bytes a
weight. A 7B model of the Llama shape has 32 layers of q and v (2 x 4096 x 4096) and the feed-forward (3 x 4096 x
11008), 5.4e9 target weights: 43 GB. So the modules are processed in groups whose sums stay under a quarter of what the
weights take (3.4 GB in bfloat16: 16 groups of two layers), each with passes of its own over both sets. A pass runs the
backward only down to the group's first module, so that 16 groups cost 16 forwards and the work of 8 backwards, not 16.
Activations and their gradients are held for one batch. Of the weight gradients only one module's for one sequence is
held at a time (180 MB there).

b: batch, s: sequence, d: output features, k: input features
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from worker.engine.adapter import weight_matrix
from worker.engine.data import chunks, pad_batch
from worker.engine.device import float32_products, model_device
from worker.engine.errors import InputError
from worker.engine.experts import separated
from worker.engine.head import Head, hidden_states
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import loss_sum
from worker.engine.onednn import linear
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM

BATCH = 8  # sequences in one backward pass
LEAST_BYTES, MOST_BYTES = 2**27, 2**32  # of both sides' sums


def fisher_diagonal(
    model: CausalLM,
    sequences: Sequence[list[int]],
    target_modules: Sequence[str],
    *,
    batch_size: int = BATCH,
    progress: Progress = no_progress,
) -> dict[str, Tensor]:
    """Empirical Fisher of each target weight: the mean over sequences of the squared gradient of its NLL.

    Per sequence the gradient of W [d, k] is `sum over s of g[s, :]^T a[s, :]`, with a the module's input and g the
    gradient of that sequence's NLL on its output. So a batch gives per-sequence gradients without a pass for each
    sequence, and the weight gradients of the whole model are never held. (The published code, csm9493/
    efficient-llm-unlearning at 272484a, squares the gradient of a batch's mean instead.)

    Args:
        model: A causal language model.
        sequences: Token ids, two or more each.
        target_modules: Full names of `nn.Linear` or `Conv1D` modules.
        batch_size: Sequences in one backward pass.
        progress: Called with the fraction done, 0..1.

    Returns:
        Module name -> float32 [d, k], on the model's device.

    Raises:
        InputError: A target module is not run when the model predicts text.
    """
    squares = _SquaredGradients()
    device = model_device(model)
    done = 0
    with _accumulating(model, target_modules, squares):
        for batch in chunks(sequences, batch_size):
            input_ids, mask, labels = (t.to(device) for t in pad_batch(batch))
            squares.batch_size = len(batch)
            with torch.enable_grad():
                hidden = hidden_states(model, input_ids, mask, use_cache=False)
                # A sum over tokens: the gradient of each row is that of its own sequence's NLL.
                if hidden.requires_grad:
                    torch.autograd.backward(loss_sum(Head(model), hidden, labels, cross_entropy_rows))
            done += len(batch)
            progress(done / len(sequences))
    layers = separated(model)
    chosen_by_none = [name for name in target_modules if name not in squares.sums]
    for name in chosen_by_none:
        if name.rsplit(".", 2)[0] not in layers:
            raise InputError(f"target_modules: {name} takes no part in predicting text")
        squares.sums[name] = torch.zeros(weight_matrix(model.get_submodule(name)).shape, device=device)
    return {name: total.div_(len(sequences)) for name, total in squares.sums.items()}


class _SquaredGradients:
    """Sums of squared weight gradients, one gradient for each sequence.

    Attributes:
        sums: Module name -> float32 [d, k].
        batch_size: Sequences in the batch that is running.
        chosen: Name of a layer of experts -> the experts of its tokens [b * s, t].
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.batch_size = 0
        self.chosen: dict[str, Tensor] = {}

    def rows(self, name: str) -> list[int] | None:
        """How many tokens of each sequence come to an expert's product; None for other modules, where all come."""
        layer, _, index = name.rpartition(".")[0].rpartition(".")
        if layer not in self.chosen:
            return None
        chosen = self.chosen[layer]
        sequences = (chosen.reshape(-1) == int(index)).nonzero()[:, 0] // (chosen.numel() // self.batch_size)
        counts: list[int] = torch.bincount(sequences, minlength=self.batch_size).tolist()
        return counts

    def add(self, name: str, rows: list[int] | None, activations: Tensor, grad: Tensor) -> None:
        """Add sum over b of (g_b^T a_b)^2, one sequence at a time so that one [d, k] is held, not b of them.

        Some families (OPT) flatten batch and sequence before their feed-forward layers; both are separated again.
        """
        activations, grad = (t.float().reshape(-1, t.shape[-1]) for t in (activations, grad))
        rows = rows or [len(grad) // self.batch_size] * self.batch_size
        if name not in self.sums:
            self.sums[name] = torch.zeros(grad.shape[-1], activations.shape[-1], device=grad.device)
        for a, g in zip(torch.split(activations, rows), torch.split(grad, rows), strict=True):  # a: [s, k], g: [s, d]
            if not len(a):
                continue
            weight_grad = linear(g.T, a.T)
            self.sums[name].addcmul_(weight_grad, weight_grad)


@contextmanager
def _accumulating(model: CausalLM, target_modules: Sequence[str], squares: _SquaredGradients) -> Iterator[None]:
    """While active, every backward pass adds its sequences' squared weight gradients to `squares`."""
    required_grad = {p: p.requires_grad for p in model.parameters()}
    was_training = model.training
    hooks = []

    def add_hook(name: str, module: nn.Module) -> None:
        def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()  # the lowest target: the backward pass ends here
            add = partial(squares.add, name, squares.rows(name), args[0].detach())
            output.register_hook(add)  # type: ignore[no-untyped-call]

        hooks.append(module.register_forward_hook(forward))

    def note_chosen(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        squares.chosen[name] = args[1]

    for parameter in required_grad:
        parameter.requires_grad_(False)
    model.eval()
    for name in target_modules:
        add_hook(name, model.get_submodule(name))
    for name in separated(model):
        hooks.append(model.get_submodule(name).register_forward_pre_hook(partial(note_chosen, name)))
    try:
        with float32_products(model) if model_device(model).type == "cpu" else nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, value in required_grad.items():
            parameter.requires_grad_(value)
        model.train(was_training)


def row_importance(
    model: CausalLM,
    forget: Sequence[list[int]],
    retain: Sequence[list[int]],
    target_modules: Sequence[str],
    *,
    eps: float = 0.1,
    absolute_eps: float | None = None,
    batch_size: int = BATCH,
    memory_bytes: int | None = None,
    progress: Progress = no_progress,
) -> dict[str, Tensor]:
    """w_i = sqrt(sum over j of F_forget[i, j] / (F_retain[i, j] + eps)), normalised to mean 1.

    The paper has no eps; its code adds 1e-5 absolute, which is of the order of F_retain itself and so hides it. Here
    eps is relative to mean(F_retain). B*A* does not depend on the scale of w, but the split between B and A does, and
    with it Adam's dynamics: hence the mean of 1.

    Args:
        model: A causal language model.
        forget: Token ids of the forget set.
        retain: Token ids of the retain set.
        target_modules: Full names of the modules to weigh.
        eps: Relative to the mean retain Fisher of the module.
        absolute_eps: The published code's variant, for parity runs; replaces `eps`.
        batch_size: Sequences in one backward pass.
        memory_bytes: The most that both sides' sums may take at once; less memory means more passes. None takes a
            quarter of what the weights take, 128 MiB at least and 4 GiB at most.
        progress: Called with the fraction done, 0..1.

    Returns:
        Module name -> float32 [d], mean 1.
    """
    if memory_bytes is None:
        memory_bytes = most_bytes(sum(parameter.nbytes for parameter in model.parameters()))
    groups = module_groups(model, target_modules, memory_bytes)
    forget_share = len(forget) / (len(forget) + len(retain))
    importance: dict[str, Tensor] = {}
    for index, names in enumerate(groups):
        forget_fisher, retain_fisher = (
            fisher_diagonal(
                model,
                side,
                names,
                batch_size=batch_size,
                progress=partial_progress(progress, (index + start) / len(groups), share / len(groups)),
            )
            for side, start, share in ((forget, 0.0, forget_share), (retain, forget_share, 1 - forget_share))
        )
        for name in names:
            importance[name] = _normalised_importance(
                forget_fisher.pop(name), retain_fisher.pop(name), eps, absolute_eps
            )
    return importance


def most_bytes(stored: int) -> int:
    """The most that the sums of both sides take at once, for a model of so many bytes."""
    return min(max(stored // 4, LEAST_BYTES), MOST_BYTES)


def module_groups(model: CausalLM, target_modules: Sequence[str], memory_bytes: int) -> list[list[str]]:
    """Consecutive modules whose float32 sums for two sides stay within `memory_bytes`; one module at least."""
    groups: list[list[str]] = []
    free_bytes = 0
    for name in target_modules:
        size = 8 * weight_matrix(model.get_submodule(name)).numel()
        if size > free_bytes:
            groups.append([])
            free_bytes = memory_bytes
        groups[-1].append(name)
        free_bytes -= size
    return groups


def _normalised_importance(
    forget_fisher: Tensor, retain_fisher: Tensor, eps: float, absolute_eps: float | None
) -> Tensor:
    """w [d] of one weight from its two Fisher diagonals [d, k]; ones if no row matters."""
    floor = absolute_eps if absolute_eps is not None else eps * float(retain_fisher.mean()) or 1e-30
    importance = (forget_fisher / (retain_fisher + floor)).sum(dim=1).sqrt()
    mean = importance.mean()
    return importance / mean if mean > 0 else torch.ones_like(importance)
