"""Splits a causal language model in two: the body up to the last hidden states, and the head from there to logits.

The logits of all tokens at once do not fit in memory: 8 x 200 tokens over a vocabulary of 262,144 are 1.7 GB in
float32, and a loss in plain autograd holds several such arrays. Code that needs only an argmax or a loss takes the
hidden states [b, s, h] and runs the head on some rows at a time.

b: batch, s: sequence, h: hidden, v: vocabulary, n: rows (tokens)
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from worker.engine.errors import InputError
from worker.engine.types import CausalLM

CHUNK_LOGITS = 2**24  # elements of [n, v] held at once: 64 MiB in float32


class _HeadReached(Exception):
    """Ends a forward pass at the head; carries the head's input."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def hidden_states(model: CausalLM, input_ids: Tensor, attention_mask: Tensor, **arguments: object) -> Tensor:
    """The input of the model's head.

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
        raise _HeadReached(args[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask, **arguments)
    except _HeadReached as reached:
        return reached.hidden
    finally:
        hook.remove()
    raise InputError(f"{type(model).__name__} does not call its output embeddings")


class _BodyOutput(BaseModelOutputWithPastAndCrossAttentions):  # type: ignore[misc]  # transformers is read as Any
    """Hidden states; whatever else a family reads of its body's output is None (router logits, states)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Head:
    """Logits [n, v] in float32 of hidden states [n, h], as the model itself computes them.

    The model's own forward runs with the hidden states as the input of its output embeddings, so that it includes
    whatever a family does after them (soft-capping, scaling). In the place of its body nothing is computed.
    """

    def __init__(self, model: CausalLM) -> None:
        """Take the head of `model`."""
        self._model = model
        self._body = _find_body(model)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of rows [n, h], float32 (float64 stays float64).

        Args:
            hidden: [n, h].

        Returns:
            [n, v].

        Raises:
            InputError: The model's class does not give its body's last hidden states to its head.
        """
        # What a family does before its output embeddings (a dense layer, scaling) is in the hidden states already.
        embeddings = self._model.get_output_embeddings()
        hook = embeddings.register_forward_pre_hook(lambda _, args: (hidden[None], *args[1:]))
        body_output = _BodyOutput(last_hidden_state=hidden[None])
        self._body.forward = lambda *_, **__: body_output
        try:
            ids = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            hook.remove()
            del self._body.forward
        if logits.shape[0] != hidden.shape[0]:
            raise InputError(f"the head of {type(self._model).__name__} cannot be run apart from its body")
        return logits if logits.dtype == torch.float64 else logits.float()

    def chunks(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(start, rows [n, h]) of hidden states [rows, h]; the logits of one chunk stay within CHUNK_LOGITS."""
        rows = max(1, CHUNK_LOGITS // self._model.config.vocab_size)
        for start in range(0, hidden.shape[0], rows):
            yield start, hidden[start : start + rows]

    def argmax(self, hidden: Tensor) -> Tensor:
        """The most likely token [n] of each row [n, h]; ties go to the lowest id."""
        return torch.cat([self(rows).argmax(-1) for _, rows in self.chunks(hidden)])


def _find_body(model: CausalLM) -> nn.Module:
    """The module whose output is the head's input: the decoder inside the model, or the model without its head."""
    whole: nn.Module = model
    body: nn.Module = model.base_model
    if body is whole:  # the family's prefix names no module of this class
        embeddings: nn.Module = model.get_input_embeddings()
        body = next(child for child in whole.children() if embeddings in child.modules())
    return getattr(body, "decoder", body)
