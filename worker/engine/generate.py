"""What a model says after a prompt, whatever the generation settings in its folder are."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from worker.engine.device import measuring, model_device
from worker.engine.types import CausalLM


def continuations(
    model: CausalLM, prompts: Sequence[Sequence[int]], new: int, *, temperature: float
) -> list[list[int]]:
    """Continue prompts of one length, by samples from the whole vocabulary.

    Settings in a model's folder may suppress tokens, search by beams or end early. Here only its end-of-text counts.

    Args:
        model: The model.
        prompts: Token ids [b, s].
        new: The most tokens that are added.
        temperature: That of the samples, which are drawn with torch's generator; 0 decodes greedily.

    Returns:
        For each prompt the new tokens, up to the end-of-text token.
    """
    own, end = model.generation_config, end_tokens(model)
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = drawn if temperature else {"do_sample": False}
    input_ids = torch.tensor(list(map(list, prompts)), device=model_device(model))
    try:
        model.generation_config = GenerationConfig(eos_token_id=end or None, pad_token_id=end[0] if end else 0, **how)
        with measuring(model):
            said = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=new)
    finally:
        model.generation_config = own
    return [_ended(tokens, end) for tokens in said[:, input_ids.shape[1] :].tolist()]


def end_tokens(model: CausalLM) -> list[int]:
    """The tokens that end a text of this model."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]


def _ended(tokens: list[int], end: Sequence[int]) -> list[int]:
    """The tokens before the first that ends the text."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in end), len(tokens))]
