"""A causal language model in two parts: the body up to the last hidden states, and the head from there to logits.

Logits of all tokens at once are what does not fit: 8 x 200 tokens over a vocabulary of 262,144 are 1.7 GB in
float32, and a loss in plain autograd holds several such arrays. Whoever needs only an argmax or a loss takes the
hidden states [b, s, h] and the head for some rows at a time.

b: batch, s: sequence, h: hidden, v: vocabulary, n: rows (tokens)
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from worker.engine.errors import InputError

CHUNK_LOGITS = 2**25  # elements of [n, v] held at once: 128 MiB in float32


class _Captured(Exception):
    """Ends a forward pass at the head; carries what the head was given."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor, **arguments: Any) -> Tensor:
    """What the model gives its head.

    Args:
        model: A causal language model.
        input_ids: [b, s].
        attention_mask: [b, s].
        **arguments: More arguments of the model's forward.

    Returns:
        [b, s, h].

    Raises:
        InputError: The model never calls its output embeddings.
    """

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Captured(args[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask, **arguments)
    except _Captured as captured:
        return captured.hidden
    finally:
        hook.remove()
    raise InputError(f"{type(model).__name__} does not call its output embeddings")


class Head:
    """Logits [n, v] in float32 of hidden states [n, h], as the model itself computes them.

    The model's own forward runs with its body replaced by the hidden states, so that whatever a family does after
    its head (soft-capping, scaling) is done, too.
    """

    def __init__(self, model: Any) -> None:
        """Take the head of `model`."""
        self._model = model
        self._body = _body_of(model)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of rows [n, h], float32 (float64 stays so).

        Args:
            hidden: [n, h].

        Returns:
            [n, v].

        Raises:
            InputError: The model's class does not give its body's last hidden states to its head.
        """
        given = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden[None])
        self._body.forward = lambda *_, **__: given
        try:
            ids = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            del self._body.forward
        if logits.shape[0] != hidden.shape[0]:
            raise InputError(f"the head of {type(self._model).__name__} cannot be run apart from its body")
        return logits if logits.dtype == torch.float64 else logits.float()

    def chunks(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(start, rows [n, h]) of hidden states [rows, h], as many rows as their logits may be held at once."""
        rows = max(1, CHUNK_LOGITS // self._model.config.vocab_size)
        for start in range(0, hidden.shape[0], rows):
            yield start, hidden[start : start + rows]

    def argmax(self, hidden: Tensor) -> Tensor:
        """The most likely token [n] of each row [n, h]; ties go to the lowest id."""
        return torch.cat([self(rows).argmax(-1) for _, rows in self.chunks(hidden)])


def _body_of(model: Any) -> Any:
    """The module whose output the head is given: the decoder inside the model, or the model without its head."""
    body = model.base_model
    return getattr(body, "decoder", body)
