"""What a model says after a prompt, whatever the generation settings in its folder are.

b: batch, s: sequence, v: vocabulary
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from worker.engine.data import chunks, pad_batch
from worker.engine.device import drawing, measuring, model_device
from worker.engine.head import Head, hidden_states
from worker.engine.metrics.caching import caches_tokens
from worker.engine.types import CausalLM


def continuations(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    new: int,
    *,
    temperature: float,
    beams: int = 1,
    with_end: bool = False,
    dtype: str = "float32",
) -> list[list[int]]:
    """Continue prompts, by samples from the whole vocabulary, or by the likeliest tokens.

    Settings in a model's folder may suppress tokens, search by beams or end early. Here only its end-of-text counts.
    Shorter prompts are padded on the left. A model whose cache cannot be cut may read the padding, as recurrent layers
    do: its prompts are continued one length after the other.

    Args:
        model: The model.
        prompts: Token ids, one or more each.
        new: The most tokens that are added.
        temperature: That of the samples, which are drawn with torch's generator; 0 takes the likeliest tokens.
        beams: At temperature 0 so many continuations are kept at once, and the one whose tokens are likeliest on
            average is taken. So a token may be less likely than others, if the text goes on surely after it.
        with_end: Whether the token that ends a text is returned, too.
        dtype: Of the products of samples, as a policy's `train_dtype` has it. Greedy decoding and beams are always in
            float32: in bfloat16 what they say would depend on the other prompts.

    Returns:
        For each prompt the new tokens, up to the end-of-text token.

    Raises:
        FloatingPointError: A sample cannot be drawn, because the model's logits are not finite.
    """
    sizes = sorted({*map(len, prompts)})
    if len(sizes) > 1 and not _takes_padding(model):
        alike = partial(
            continuations, model, new=new, temperature=temperature, beams=beams, with_end=with_end, dtype=dtype
        )
        answers: dict[int, list[int]] = {}
        for size in sizes:
            places = [i for i, ids in enumerate(prompts) if len(ids) == size]
            answers |= zip(places, alike([prompts[i] for i in places]), strict=True)
        return [answers[i] for i in range(len(prompts))]
    own, end = model.generation_config, end_tokens(model)
    draws = LogitsProcessorList([_Draws(temperature)] if temperature else [])
    # `pad_batch` pads on the right.
    input_ids, mask = (part.flip(1).to(model_device(model)) for part in pad_batch([ids[::-1] for ids in prompts])[:2])
    try:
        model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1 if temperature else beams,
            eos_token_id=end or None,
            pad_token_id=end[0] if end else 0,
        )
        with drawing(model, dtype if temperature else "float32"):
            said = model.generate(input_ids, attention_mask=mask, max_new_tokens=new, logits_processor=draws)
    finally:
        model.generation_config = own
    return [_ended(tokens, end, with_end) for tokens in said[:, input_ids.shape[1] :].tolist()]


def _takes_padding(model: CausalLM) -> bool:
    with measuring(model):
        return caches_tokens(model)


class _Draws(LogitsProcessor):  # type: ignore[misc]  # transformers is read as Any
    """Draws a token for each row: from the sums of probabilities, with one random number a row.

    `torch.multinomial`, which transformers draws with, takes one for each token of the vocabulary.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores [b, v]: 0 for the token that was drawn, -inf for the others."""
        sums = torch.softmax(scores / self._temperature, dim=-1).double().cumsum(-1)
        total = sums[:, -1:]
        if not total.isfinite().all():
            raise FloatingPointError("the logits are not finite")
        places = torch.rand(len(sums), 1, dtype=sums.dtype, device=sums.device) * total
        places = torch.minimum(places, total.nextafter(torch.zeros_like(total)))  # a product may be rounded up
        return torch.full_like(scores, -math.inf).scatter_(1, torch.searchsorted(sums, places, right=True), 0.0)


def beginnings(model: CausalLM, opening: list[int], count: int, new: int, batch: int) -> list[list[int]]:
    """The likeliest texts that begin with some tokens, found by a beam search without a cache.

    All of them would not fit in memory with their keys and values. They are short.

    Args:
        model: The model.
        opening: Token ids, one or more.
        count: How many are kept at each token.
        new: How many tokens are added; none of them ends a text.
        batch: How many texts are read at once.

    Returns:
        Token ids with the opening, likeliest first; fewer than `count` if there are fewer.
    """
    head, end, begun = Head(model), end_tokens(model), {tuple(opening): 0.0}
    for _ in range(new):
        longer: dict[tuple[int, ...], float] = {}
        for part in chunks([*map(list, begun)], batch):
            input_ids = torch.tensor(part, device=model_device(model))
            scores = torch.tensor([begun[tuple(ids)] for ids in part], device=input_ids.device)
            with measuring(model):
                last = hidden_states(model, input_ids, torch.ones_like(input_ids), use_cache=False)[:, -1]
                log_p = torch.log_softmax(head(last), dim=-1)  # [b, v]
            log_p[:, [token for token in end if token < log_p.shape[1]]] = -math.inf
            best, tokens = (scores[:, None] + log_p).topk(min(count, log_p.shape[1]), dim=1)
            for ids, row in zip(part, zip(best.tolist(), tokens.tolist(), strict=True), strict=True):
                longer |= {(*ids, token): score for score, token in zip(*row, strict=True) if score > -math.inf}
        begun = dict(sorted(longer.items(), key=lambda text: -text[1])[:count])
    return [*map(list, begun)]


def end_tokens(model: CausalLM) -> list[int]:
    """The tokens that end a text of this model."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]


def _ended(tokens: list[int], end: Sequence[int], with_end: bool) -> list[int]:
    """The tokens before the first that ends the text, and that one if it is asked for."""
    return tokens[: next((i + with_end for i, token in enumerate(tokens) if token in end), len(tokens))]
