"""Texts in, token sequences by role out: forget, retain, thresholds, utility."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.engine.criterion import MIN_HELDOUT
from worker.engine.data import first_windows, text_windows, without_forget_text
from worker.engine.errors import TooFewTexts, TooShort
from worker.engine.forget_set import ForgetSet
from worker.engine.options import Options


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a run reads, as token ids.

    Attributes:
        forget: The forget set.
        earlier: What earlier jobs made the model forget; request_ids are numbered on from the forget set's.
        retain_texts: Retain texts that contain no forget text.
        threshold_sequences: Held-out sequences that set the thresholds.
        utility: Held-out sequences for perplexity, disjoint from `threshold_sequences` where there are enough.
        retain: Retain sequences for perplexity and the Fisher estimate.
        retain_excluded: Retain texts left out because they contain a forget text.
        heldout_excluded: Held-out texts left out for the same reason.
    """

    forget: ForgetSet
    earlier: ForgetSet
    retain_texts: list[str]
    threshold_sequences: list[list[int]]
    utility: list[list[int]]
    retain: list[list[int]]
    retain_excluded: int
    heldout_excluded: int


def prepare(
    tokenizer: Any,
    forget_texts: Sequence[str],
    request_ids: Sequence[int],
    retain_texts: Sequence[str],
    heldout_texts: Sequence[str],
    options: Options,
    *,
    earlier_texts: Sequence[str] = (),
    earlier_request_ids: Sequence[int] = (),
) -> Prepared:
    """Tokenise and split; retain and held-out texts that contain a forget text are left out.

    Args:
        tokenizer: The model's tokenizer.
        forget_texts: Texts to forget.
        request_ids: For each of them the index of its request.
        retain_texts: Texts to keep the model's abilities on.
        heldout_texts: Texts the model has never seen.
        options: The run's options.
        earlier_texts: Texts that earlier jobs unlearned; the result is held to their verdicts, too.
        earlier_request_ids: For each of them the number of its request, other numbers than in `request_ids`.

    Returns:
        The sets of the run.

    Raises:
        TooFewTexts: No retain text is left, or fewer than MIN_HELDOUT held-out texts.
        TooShort: A forget text has no token that the model predicts.
    """
    length = options.sequence_length
    kept_retain, retain_excluded = without_forget_text(retain_texts, [*forget_texts, *earlier_texts])
    kept_heldout, heldout_excluded = without_forget_text(heldout_texts, [*forget_texts, *earlier_texts])
    enough = len(kept_heldout) >= 2 * MIN_HELDOUT
    for_thresholds, for_utility = (kept_heldout[0::2], kept_heldout[1::2]) if enough else (kept_heldout,) * 2
    retain = first_windows(tokenizer, kept_retain, length, max(options.utility_sequences, options.fisher_sequences))
    threshold_sequences = first_windows(tokenizer, for_thresholds, length, options.heldout_sequences)
    if not retain:
        raise TooFewTexts(f"retain: no text is left ({retain_excluded} contained a text to forget)")
    if len(threshold_sequences) < MIN_HELDOUT:
        raise TooFewTexts(f"heldout: {len(threshold_sequences)} usable texts; {MIN_HELDOUT} are needed for thresholds")
    return Prepared(
        ForgetSet.build(tokenizer, forget_texts, request_ids, length),
        ForgetSet.build(tokenizer, earlier_texts, earlier_request_ids, length),
        kept_retain,
        threshold_sequences,
        first_windows(tokenizer, for_utility, length, options.utility_sequences),
        retain,
        retain_excluded,
        heldout_excluded,
    )


class RetainSampler:
    """Retain sequences for training: texts in a shuffled order, a random window of each.

    What it gives in an epoch depends on the seed and the epoch's number alone, so a resumed run sees the same.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], length: int, seed: int) -> None:
        self._tokenizer, self._texts, self._length, self._seed = tokenizer, texts, length, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Begin the sequence of this epoch."""
        self._random = random.Random(f"{self._seed}/retain/{epoch}")
        self._order: list[int] = []

    def take(self, count: int) -> list[list[int]]:
        """The next `count` sequences."""
        found: list[list[int]] = []
        while len(found) < count:
            if not self._order:
                self._order = self._random.sample(range(len(self._texts)), len(self._texts))
            try:
                cut = text_windows(self._tokenizer, self._texts[self._order.pop()], self._length)
            except TooShort:
                continue
            found.append(self._random.choice(cut))
        return found
