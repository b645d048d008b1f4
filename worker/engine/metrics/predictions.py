"""The likeliest next token, after every prefix of a sequence or after the whole.

b: batch, s: sequence, h: hidden
"""

from collections.abc import Sequence

import torch

from worker.engine.data import pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.errors import NotCausal
from worker.engine.head import Head, hidden_states
from worker.engine.types import CausalLM

TOLERANCE = 1e-3  # of the largest state; encoders of random small weights are twice to five times over it


def predictions(model: CausalLM, sequences: Sequence[Sequence[int]], **arguments: object) -> list[list[int]]:
    """Argmax predictions of x_1..x_T-1 for each sequence, teacher-forced; ties go to the lowest id.

    Args:
        model: A causal language model, inside `measuring`.
        sequences: Token ids, two or more each.
        **arguments: More arguments of the model's forward, such as a cache to fill.

    Returns:
        The predictions of each sequence.
    """
    input_ids, mask, _ = pad_batch(sequences)
    device = model_device(model)
    hidden = hidden_states(model, input_ids.to(device), mask.to(device), **arguments)  # [b, s, h]
    argmax = Head(model).argmax(hidden.flatten(0, 1)).view(hidden.shape[:2]).tolist()
    return [row[: len(ids) - 1] for row, ids in zip(argmax, sequences, strict=True)]


def check_causal(model: CausalLM) -> None:
    """Check that a model predicts a token from those before it alone.

    Args:
        model: A causal language model.

    Raises:
        NotCausal: Its states of three tokens depend on the fourth.
    """
    size = model.config.vocab_size
    input_ids = torch.tensor([[0, 1, 2, last % size] for last in (3, size // 2, size - 1)], device=model_device(model))
    with measuring(model):
        states = hidden_states(model, input_ids, torch.ones_like(input_ids), use_cache=False)[:, :3].float()
    if float((states - states[0]).abs().max()) > TOLERANCE * float(states.abs().max()):
        raise NotCausal(f"{type(model).__name__} reads the text that follows")


def next_tokens(model: CausalLM, texts: Sequence[Sequence[int]]) -> list[int]:
    """The likeliest token after each text."""
    input_ids, mask, _ = pad_batch(texts)
    device = model_device(model)
    hidden = hidden_states(model, input_ids.to(device), mask.to(device), use_cache=False)
    last = torch.tensor([len(text) - 1 for text in texts], device=device)
    return Head(model).argmax(hidden[torch.arange(len(texts), device=device), last]).tolist()
