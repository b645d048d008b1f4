"""Turns texts into token sequences by their role in a run: forget, retain, thresholds, utility."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from worker.engine.criterion import MIN_HELDOUT
from worker.engine.data import first_windows, text_windows, without_forget_text
from worker.engine.errors import TooFewTexts, TooShort
from worker.engine.forget_set import ForgetSet
from worker.engine.options import Options
from worker.engine.types import Tokenizer

GENERIC_COUNT, GENERIC_SHARE = 3, 0.1  # reference texts in which the texts of one request may stand


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a run reads, as token ids.

    Attributes:
        forget: The forget set.
        earlier: The forget sets of earlier jobs; their request_ids continue after those of the forget set.
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


def unfit_requests(
    tokenizer: Tokenizer,
    forget_texts: Sequence[str],
    request_ids: Sequence[int],
    retain_texts: Sequence[str],
    heldout_texts: Sequence[str],
    options: Options,
) -> dict[int, str]:
    """Requests that cannot be unlearned, or that would spoil the run for the others.

    A text of a few common words stands in many retain and held-out texts. All of them would be left out, and too few
    would stay to train on and to set thresholds.

    Args:
        tokenizer: The model's tokenizer.
        forget_texts: Texts to forget.
        request_ids: For each of them the index of its request.
        retain_texts: Texts to keep the model's abilities on.
        heldout_texts: Texts the model has never seen.
        options: The run's options.

    Returns:
        Index of a request -> too_short, too_long or too_generic.
    """
    texts_by_request: dict[int, list[str]] = {}
    for text, request_id in zip(forget_texts, request_ids, strict=True):
        texts_by_request.setdefault(request_id, []).append(text)
    unfit: dict[int, str] = {}
    for request_id, texts in texts_by_request.items():
        try:
            count = sum(len(text_windows(tokenizer, text, options.sequence_length)) for text in texts)
        except TooShort as error:
            unfit[request_id] = error.code
            continue
        if count > options.max_request_sequences:
            unfit[request_id] = "too_long"
        elif any(_is_generic(texts, references) for references in (retain_texts, heldout_texts)):
            unfit[request_id] = "too_generic"
    return unfit


def _is_generic(texts: Sequence[str], references: Sequence[str]) -> bool:
    """Whether the texts of one request stand in more than a tenth of the reference texts, and in more than three."""
    _, excluded = without_forget_text(references, texts)
    return excluded > max(GENERIC_COUNT, GENERIC_SHARE * len(references))


def prepare(
    tokenizer: Tokenizer,
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
        earlier_texts: Texts that earlier jobs unlearned; the result must pass their verdicts, too.
        earlier_request_ids: For each of them the index of its request; distinct from those in `request_ids`.

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

    The sequences of an epoch depend on the seed and the epoch's number alone, so a resumed run sees the same ones.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], length: int, seed: int) -> None:
        self._tokenizer, self._texts, self._length, self._seed = tokenizer, texts, length, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Restart the random order for this epoch."""
        self._random = random.Random(f"{self._seed}/retain/{epoch}")
        self._order: list[int] = []

    def sample(self, count: int) -> list[list[int]]:
        """The next `count` sequences."""
        sequences: list[list[int]] = []
        while len(sequences) < count:
            if not self._order:
                self._order = self._random.sample(range(len(self._texts)), len(self._texts))
            try:
                windows = text_windows(self._tokenizer, self._texts[self._order.pop()], self._length)
            except TooShort:
                continue
            sequences.append(self._random.choice(windows))
        return sequences
