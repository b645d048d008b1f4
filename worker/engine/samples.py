"""The parent's own samples: retain text that nobody has to provide, in whatever the model can say."""

import random
from collections import Counter
from collections.abc import Sequence

import torch

from worker.engine.generate import continuations
from worker.engine.options import Options
from worker.engine.prepare import Prepared, RetainSampler
from worker.engine.progress import Progress, no_progress
from worker.engine.types import CausalLM, Tokenizer

BATCH, USUAL_LENGTH = 64, 200  # samples at once, of that many tokens
PER_RETAIN = 2  # in a batch: nobody names most of what a model knows
GRAM = 8  # tokens in a row
MOST_SHARED = 0.2  # share of a sample's runs that may be runs of texts to forget alone
MOST_OF_A_TEXT = 0.5  # share of such a text's runs that a sample may say


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
    if not options.samples_drawn:
        return []
    bos = tokenizer.bos_token_id
    forgotten = _Forgotten((data.forget + data.earlier).sequences, [*data.all_retain, *data.threshold_sequences])
    openings = data.retain if bos is None else [[bos]]
    kept: list[list[int]] = []
    torch.manual_seed(options.seed)
    fitting = max(1, min(BATCH, options.row_budget, BATCH * USUAL_LENGTH // options.sequence_length))
    for start in range(0, options.samples_drawn, fitting):
        size = min(fitting, options.samples_drawn - start)
        firsts = [openings[(start + i) % len(openings)][:1] for i in range(size)]
        said = continuations(model, firsts, options.sequence_length - 1, sample=True)
        samples = [first + tokens for first, tokens in zip(firsts, said, strict=True)]
        kept += [ids for ids in samples if len(ids) >= GRAM and not forgotten.said_in(ids)]
        progress((start + size) / options.samples_drawn)
    return kept


def kept_batch(retain: RetainSampler, samples: list[list[int]], size: int, order: random.Random) -> list[list[int]]:
    """Retain sequences, so many, and twice as many samples of the parent."""
    return retain.sample(size) + order.sample(samples, min(PER_RETAIN * size, len(samples)))


class _Forgotten:
    """The runs of tokens of texts to forget that stand in no other text: forms have many runs in common."""

    def __init__(self, sequences: Sequence[list[int]], others: Sequence[list[int]]) -> None:
        self._sizes = {min(GRAM, len(ids) - 1) for ids in sequences}
        elsewhere = {run for ids in others for run in self._runs(ids)}
        self._texts: dict[tuple[int, ...], list[int]] = {}
        for index, ids in enumerate(sequences):
            for run in set(_runs(ids[1:], min(GRAM, len(ids) - 1))) - elsewhere:
                self._texts.setdefault(run, []).append(index)
        self._totals = Counter(index for texts in self._texts.values() for index in texts)

    def said_in(self, ids: Sequence[int]) -> bool:
        """Whether a sample has many of these runs, or many of one text's."""
        said = [run for run in self._runs(ids) if run in self._texts]
        of_texts = Counter(index for run in set(said) for index in self._texts[run])
        most_of_one = any(count > MOST_OF_A_TEXT * self._totals[index] for index, count in of_texts.items())
        return most_of_one or len(said) > MOST_SHARED * (len(ids) - GRAM + 1)

    def _runs(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        return [run for size in self._sizes for run in _runs(ids, size)]


def _runs(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
