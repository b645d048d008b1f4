"""Thresholds from held-out text, if it is unseen.

Text that the parent knows by heart sets limits that a memorised request would meet.

A few known texts are borne: they are left out of thresholds and of what attacks compare with. Licences and well-known
quotations stand in any large corpus. More than a few are refused, and so are two groups of which the model predicts one
far better than the other.

Text that was seen too seldom to be known by heart shows in its numbers: to a model that never saw them, the last digits
of other texts' numbers are as likely in their place. If the true ones are the likeliest too often, the held-out text is
refused, too.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from statistics import fmean, median

from worker.engine.attacks.exposure import Secret, secrets_in, share_of_less_likely
from worker.engine.criterion import MIN_HELDOUT, Threshold, thresholds_for
from worker.engine.data import chunks, decoded
from worker.engine.errors import HeldoutKnown
from worker.engine.identifiers import NUMBER, NUMBER_KIND, plain
from worker.engine.likelihoods import greedy_decodings
from worker.engine.metrics.extraction import fitting_n
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.predictions import check_causal
from worker.engine.metrics.token_scores import BATCH
from worker.engine.options import Options
from worker.engine.other_digits import DIGIT
from worker.engine.prepare import Prepared
from worker.engine.progress import Progress, no_progress, partial_progress, with_progress
from worker.engine.types import CausalLM, Tokenizer

KNOWN_MA = 0.9  # nobody guesses so much of a text
APART, SEEN_MA = 5.5, 0.6  # standard deviations in two groups, between their means; the higher mean
LEAST_OVER, DEVIATIONS = 0.25, 4.0  # over the median MA; the deviations are robust ones (1.4826 x the median deviation)
FEWEST_TOKENS = 16  # of a text; fewer are guessed by chance
MOST_GUESSED_SHORT = 0.25  # of twenty texts that short, or more
MOST_KNOWN = 0.1  # share of the held-out texts
DIGITS, LAST_DIGITS = 7, 3  # of a number; of these the last ones are guessed
DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}")
MOST_LOOKED_AT = 128  # texts with numbers
FEWEST_NUMBERS, MOST_NUMBERS, MOST_GUESSED = 20, 32, 1 / 3  # by chance in fewer than one of 10,000 jobs


def known_by_heart(model: CausalLM, heldout: Sequence[list[int]], progress: Progress = no_progress) -> list[list[int]]:
    """The held-out sequences that the parent knows by heart: of a very high MA, or far over the others'.

    Short ones count if more of them are right than chance would explain.

    Args:
        model: The parent.
        heldout: Held-out sequences.
        progress: Called with the fraction done, 0..1.

    Returns:
        Those that it knows.

    Raises:
        HeldoutKnown: They are more than a tenth, or the texts are two groups, of which it predicts one far better.
    """
    batches = with_progress([*chunks(heldout, BATCH)], progress)
    ma = [accuracy(row) for batch in batches for row in token_matches(model, batch)]
    middle = median(ma)
    spread = 1.4826 * median(abs(value - middle) for value in ma)
    limit = min(KNOWN_MA, middle + max(LEAST_OVER, DEVIATIONS * spread))
    of_short = [value > KNOWN_MA for ids, value in zip(heldout, ma, strict=True) if len(ids) <= FEWEST_TOKENS]
    many = len(of_short) >= MIN_HELDOUT and sum(of_short) > MOST_GUESSED_SHORT * len(of_short)
    by_chance = 0 if many else FEWEST_TOKENS
    known = [ids for ids, value in zip(heldout, ma, strict=True) if value > limit and len(ids) > by_chance]
    if len(known) > MOST_KNOWN * len(ma):
        raise HeldoutKnown(f"heldout: the model knows {len(known)} of {len(ma)} texts by heart; they must be unseen")
    better = _better_predicted([value for ids, value in zip(heldout, ma, strict=True) if len(ids) > FEWEST_TOKENS])
    if better:
        raise HeldoutKnown(
            f"heldout: the model predicts {better} of {len(ma)} texts far better than the others; they were seen, or "
            "are of another kind"
        )
    return known


def _better_predicted(ma: Sequence[float]) -> int:
    """How many texts are the better predicted one of two groups, each more than a tenth; 0 if all are one group.

    They are split where they vary least within (Otsu 1979).
    """
    ordered, few = sorted(ma), math.floor(MOST_KNOWN * len(ma)) + 1
    splits = [(ordered[:at], ordered[at:]) for at in range(few, len(ordered) - few + 1)]
    within = [sum(_squares(group) for group in groups) for groups in splits]
    if not splits:
        return 0
    low, high = splits[within.index(min(within))]
    apart, deviation = fmean(high) - fmean(low), math.sqrt(min(within) / len(ma))
    return len(high) if fmean(high) > SEEN_MA and apart > max(LEAST_OVER, APART * deviation) else 0


def _squares(values: Sequence[float]) -> float:
    """The sum of squared deviations from their mean."""
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)


def check_numbers(model: CausalLM, tokenizer: Tokenizer, data: Prepared, progress: Progress = no_progress) -> None:
    """Check that a model does not know the last digits of held-out numbers.

    In the place of each number stand others that end as those of other held-out texts do. So an end that many numbers
    have, as round sums do, does not count. Nor do ranges and dates, whose ends follow from their beginnings, what
    stands before in the same text, or numbers that other texts of the run have, too: the model may know them.

    Args:
        model: The parent, or a version that is measured again.
        tokenizer: Its tokenizer.
        data: The sets of the run.
        progress: Called with the fraction done, 0..1.

    Raises:
        HeldoutKnown: Of twenty numbers or more that end differently, the true digits are the likeliest in more than a
            third.
    """
    others = [*(data.forget + data.earlier).sequences, *chain(*data.neighbours)]
    texts, others_said = (
        [decoded(tokenizer, ids) for ids in dict.fromkeys(map(tuple, sequences))]
        for sequences in (chain(*data.heldout.values()), others)
    )
    numbers = (one for text in texts if (one := _random_number(text)))
    known = {_digits(one.identifier.value): one for one in islice(numbers, MOST_LOOKED_AT)}
    if len(known) < FEWEST_NUMBERS:
        return  # retain text may be long
    said = Counter[str]()
    for text in [*texts, *others_said, *data.retain_texts]:
        in_text = " ".join(map(_digits, NUMBER.findall(plain(text))))
        said.update(digits for digits in known if digits in in_text)
    left = {digits[-LAST_DIGITS:]: one for digits, one in known.items() if said[digits] <= 1}
    if len(left) < FEWEST_NUMBERS:
        return
    asked, guessed = [*left.items()][:MOST_NUMBERS], 0
    for end, secret in with_progress(asked, progress):
        drawn = [_ending(secret.identifier.value, other) for other, _ in asked if other != end]
        guessed += share_of_less_likely(model, tokenizer, secret, drawn) == 1
    if guessed > MOST_GUESSED * len(asked):
        raise HeldoutKnown(f"heldout: the model knows {guessed} of {len(asked)} numbers; these texts must be unseen")


def _random_number(text: str) -> Secret | None:
    """The first long number of a text whose last digits follow from nothing before them."""
    for one in secrets_in(text, NUMBER_KIND):
        value = plain(one.identifier.value)
        digits, parts = _digits(value), re.split(r"[-/.]", value)
        is_range = len(parts) == 2 and len(parts[0]) == len(parts[1])
        follows = is_range or DATE.match(value) or digits[-LAST_DIGITS:] in _digits(one.before)
        if len(digits) >= DIGITS and not follows:
            return one
    return None


def _digits(text: str) -> str:
    """The digits of a text."""
    return "".join(DIGIT.findall(text))


def _ending(number: str, digits: str) -> str:
    """A number with these last digits."""
    left, characters = list(digits), list(number)
    for place in reversed([match.start() for match in DIGIT.finditer(number)][-LAST_DIGITS:]):
        characters[place] = left.pop()
    return "".join(characters)


def measured_thresholds(
    model: CausalLM, tokenizer: Tokenizer, data: Prepared, options: Options, progress: Progress = no_progress
) -> tuple[list[Threshold], list[list[int]]]:
    """Thresholds by the held-out texts that a model does not know.

    Args:
        model: The parent, or a version that is measured again.
        tokenizer: Its tokenizer.
        data: The sets of the run.
        options: The run's options.
        progress: Called with the fraction done, 0..1.

    Returns:
        (the threshold of each sequence to forget, then of each earlier one; the held-out sequences that it knows).

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
        HeldoutKnown: The model knows more than a tenth of the held-out texts by heart, or too few others are left, or
            it knows numbers in them.
        NotCausal: It reads the text that follows.
    """
    check_causal(model)
    check_numbers(model, tokenizer, data, partial_progress(progress, 0.0, 0.1))
    everything = (data.forget + data.earlier).sequences
    known = known_by_heart(model, data.used_heldout, partial_progress(progress, 0.1, 0.1))
    unseen = [ids for ids in data.threshold_sequences if ids not in known]
    if known:
        unseen += [ids for ids in data.only_utility if ids not in known][: max(0, MIN_HELDOUT - len(unseen))]
        if len(unseen) < MIN_HELDOUT:
            raise HeldoutKnown(f"heldout: the model knows {len(known)} texts by heart; of the others too few are left")
    n = fitting_n(min(map(len, [*unseen, *everything])), options.el_n)
    decoded = [*greedy_decodings(model, unseen, n, options, partial_progress(progress, 0.2, 0.8))]
    return thresholds_for(decoded, everything, options.el_n), known
