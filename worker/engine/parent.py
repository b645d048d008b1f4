"""What the parent says, while its adapter is in training: it is the same model with the adapter at strength 0.

b: batch, n: rows (predicted tokens), h: hidden, v: vocabulary
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from worker.engine.adapter import Adapter
from worker.engine.data import pad_batch
from worker.engine.device import model_device, training
from worker.engine.head import Head, hidden_states
from worker.engine.losses.rows import Beside, predicted_rows
from worker.engine.types import CausalLM


@contextmanager
def without_adapter(adapter: Adapter, strength: float = 1.0) -> Iterator[None]:
    """The parent in place of the model; afterwards the adapter has `strength` again."""
    adapter.set_strength(0.0)
    try:
        yield
    finally:
        adapter.set_strength(strength)


def parent_logits(
    model: CausalLM, adapter: Adapter, sequences: Sequence[Sequence[int]], train_dtype: str, strength: float = 1.0
) -> Beside:
    """The parent's logits [n, v] for the predicted rows of these sequences."""
    with without_adapter(adapter, strength):
        rows = _rows(model, sequences, train_dtype)[0]
    head = Head(model)
    return lambda chunk: head(rows[chunk]).detach()


def sequence_log_likelihoods(model: CausalLM, sequences: Sequence[Sequence[int]], train_dtype: str) -> Tensor:
    """The log-likelihood [b] of each sequence, without gradients."""
    rows, targets = _rows(model, sequences, train_dtype)
    head = Head(model)
    parts = [
        torch.log_softmax(head(part).detach(), dim=-1).gather(-1, targets[start : start + len(part), None])
        for start, part in head.chunks(rows)
    ]
    lengths = [len(ids) - 1 for ids in sequences]
    return torch.stack([part.sum() for part in torch.split(torch.cat(parts).squeeze(-1), lengths)])


def _rows(model: CausalLM, sequences: Sequence[Sequence[int]], train_dtype: str) -> tuple[Tensor, Tensor]:
    """The hidden states [n, h] that predict the tokens of these sequences, and the tokens [n]."""
    input_ids, mask, labels = (t.to(model_device(model)) for t in pad_batch(sequences))
    with training(model, train_dtype), torch.no_grad():
        hidden = hidden_states(model, input_ids, mask, use_cache=False)
    torch.clear_autocast_cache()  # older torch used what it cast without gradients again with them (pytorch#158232)
    rows, targets = predicted_rows(hidden, labels)
    return rows.detach(), targets
