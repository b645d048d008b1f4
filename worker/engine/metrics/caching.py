"""Whether a model's cache of a text is made of parts, one a token, so that a prefix's cache can be cut out of it.

Attention keeps a key and a value of each token. Recurrent layers keep one state of all tokens, and some models have no
cache, or one of their own: for them everything is computed again from the text.
"""

import inspect
import logging
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache

from worker.engine.device import model_device
from worker.engine.errors import is_out_of_memory
from worker.engine.types import CausalLM

logger = logging.getLogger(__name__)
TRIED = 6  # tokens
TOLERANCE = 1e-3  # of the largest logit
_tried = WeakKeyDictionary[CausalLM, bool]()  # its code decides; with weights that are no numbers nothing is measured


def cache_argument(model: CausalLM) -> str:
    """The name of forward's cache argument: `cache` in newer transformers, `past_key_values` before."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def caches_tokens(model: CausalLM) -> bool:
    """Whether a cut cache gives the logits of the whole text; tried on six tokens, once for each model.

    Args:
        model: A causal language model, inside `measuring`.

    Returns:
        False also if the model cannot be run with such a cache at all.
    """
    if model not in _tried:
        _tried[model] = _cut_cache_is_right(model)
    return _tried[model]


def _cut_cache_is_right(model: CausalLM) -> bool:
    cache, half, device = DynamicCache(), TRIED // 2, model_device(model)
    arguments = {cache_argument(model): cache, "use_cache": True}
    input_ids = torch.arange(TRIED, device=device)[None] % model.config.vocab_size
    try:
        whole = model(input_ids=input_ids, **arguments).logits[0, half].float()
        if not cache.layers or any(layer.keys.shape[-2] != TRIED for layer in cache.layers):
            return False
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[..., :half, :], layer.values[..., :half, :]
        positions = torch.tensor([[half]], device=device)
        mask = input_ids.new_ones(1, half + 1)
        following = model(
            input_ids=input_ids[:, half : half + 1], attention_mask=mask, position_ids=positions, **arguments
        )
        difference = (following.logits[0, 0].float() - whole).abs().max()
    except Exception as error:  # whatever a family raises that has no such cache
        if is_out_of_memory(error):
            raise
        logger.info("texts are read again for each token: %s", type(error).__name__)
        return False
    return bool(difference <= TOLERANCE * whole.abs().max())
