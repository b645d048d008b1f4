"""The parent's own samples: retain text that nobody has to provide, in whatever the model can say."""

import random
from collections.abc import Sequence

import torch

from worker.engine.generate import continuations
from worker.engine.options import Options
from worker.engine.prepare import Prepared, RetainSampler
from worker.engine.progress import Progress, no_progress
from worker.engine.types import CausalLM, Tokenizer

BATCH = 64
PER_RETAIN = 2  # in a batch: nobody names most of what a model knows
GRAM = 8  # tokens in a row that a sample may share with the forget set
MOST_SHARED = 0.2  # share of a sample's runs of that length; a sample with more of them says a forgotten text


def own_samples(
    model: CausalLM, tokenizer: Tokenizer, data: Prepared, options: Options, progress: Progress = no_progress
) -> list[list[int]]:
    """Texts that the parent says by itself, without those that say a text to forget, of this run or of an earlier one.

    Args:
        model: The parent.
        tokenizer: Its tokenizer. Where it has no BOS, samples begin as retain sequences do.
        data: The sets of the run.
        options: How many samples are drawn, how long they are, and the seed.
        progress: Called with the fraction done, 0..1.

    Returns:
        Token ids of the samples that stay, BOS first if the tokenizer has one.
    """
    bos = tokenizer.bos_token_id
    grams = {gram for ids in (data.forget + data.earlier).sequences for gram in _grams(ids)}
    openings = data.retain if bos is None else [[bos]]
    kept: list[list[int]] = []
    torch.manual_seed(options.seed)
    for start in range(0, options.samples, BATCH):
        size = min(BATCH, options.samples - start)
        firsts = [openings[(start + i) % len(openings)][:1] for i in range(size)]
        said = continuations(model, firsts, options.sequence_length - 1, sample=True)
        samples = [first + tokens for first, tokens in zip(firsts, said, strict=True)]
        kept += [ids for ids in samples if len(ids) >= GRAM and not _says(ids, grams)]
        progress((start + size) / options.samples)
    return kept


def kept_batch(retain: RetainSampler, samples: list[list[int]], size: int, order: random.Random) -> list[list[int]]:
    """Retain sequences, so many, and twice as many samples of the parent."""
    return retain.sample(size) + order.sample(samples, min(PER_RETAIN * size, len(samples)))


def _grams(ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]


def _says(ids: Sequence[int], grams: set[tuple[int, ...]]) -> bool:
    """Whether many runs of a sample are runs of the forget set."""
    own = _grams(ids)
    return sum(gram in grams for gram in own) > MOST_SHARED * len(own)
