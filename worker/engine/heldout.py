"""Thresholds from held-out text, if it is unseen.

Text that the parent knows by heart sets limits that a memorised request would meet.

A few known texts are borne: they are left out of thresholds and of what attacks compare with. Licences and well-known
quotations stand in any large corpus. More than a few are refused.

Text that was seen too seldom to be known by heart shows in its numbers: to a model that never saw them, the last digits
of other texts' numbers are as likely in their place. If the true ones are the likeliest too often, the held-out text is
refused, too.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from worker.engine.attacks.exposure import first_secret, share_of_less_likely
from worker.engine.criterion import MIN_HELDOUT, Threshold, thresholds_for
from worker.engine.errors import HeldoutKnown
from worker.engine.identifiers import NUMBER, NUMBER_KIND
from worker.engine.likelihoods import greedy_decodings
from worker.engine.metrics.extraction import fitting_n
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.other_digits import DIGIT
from worker.engine.prepare import Prepared
from worker.engine.progress import Progress, no_progress
from worker.engine.types import CausalLM, Tokenizer

KNOWN_MA = 0.9  # nobody guesses so much of a text
LEAST_OVER, DEVIATIONS = 0.25, 4.0  # over the median MA; the deviations are robust ones (1.4826 x the median deviation)
FEWEST_TOKENS = 16  # predicted ones; fewer are guessed by chance
MOST_KNOWN = 0.1  # share of the held-out texts
DIGITS, LAST_DIGITS = 7, 3  # of a number; of these the last ones are guessed
FEWEST_NUMBERS, MOST_NUMBERS, MOST_GUESSED = 20, 32, 1 / 3  # 7 of 20 are guessed by chance in 3 of 100,000 jobs


def known_by_heart(model: CausalLM, heldout: Sequence[list[int]]) -> list[list[int]]:
    """The held-out sequences that the parent knows by heart: of a very high MA, or far over the others'.

    Args:
        model: The parent.
        heldout: Held-out sequences.

    Returns:
        Those that it knows.

    Raises:
        HeldoutKnown: They are more than a tenth.
    """
    ma = [accuracy(row) for row in token_matches(model, heldout)]
    middle = median(ma)
    spread = 1.4826 * median(abs(value - middle) for value in ma)
    limit = min(KNOWN_MA, middle + max(LEAST_OVER, DEVIATIONS * spread))
    known = [ids for ids, value in zip(heldout, ma, strict=True) if value > limit and len(ids) > FEWEST_TOKENS]
    if len(known) > MOST_KNOWN * len(ma):
        raise HeldoutKnown(f"heldout: the model knows {len(known)} of {len(ma)} texts by heart; they must be unseen")
    return known


def check_numbers(model: CausalLM, tokenizer: Tokenizer, data: Prepared, progress: Progress = no_progress) -> None:
    """Check that a model does not know the last digits of held-out numbers.

    In the place of each number stand others that end as those of other held-out texts do. So digits that follow from
    what a number is (a year, a round sum) do not count. Nor do numbers that stand in several texts, of any set of the
    run: the model may know them.

    Args:
        model: The parent, or a version that is measured again.
        tokenizer: Its tokenizer.
        data: The sets of the run.
        progress: Called with the fraction done, 0..1.

    Raises:
        HeldoutKnown: In more than a third of the texts the true digits are the likeliest.
    """
    texts, others = (
        [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in sequences]
        for sequences in (data.threshold_sequences, (data.forget + data.earlier).sequences)
    )
    known = (first_secret(text, NUMBER_KIND) for text in texts)
    long = {digits: one for one in known if one and len(digits := _digits(one.identifier.value)) >= DIGITS}
    everywhere = (number for text in [*texts, *others, *data.retain_texts] for number in _digits_of_numbers(text))
    said = Counter(number for number in everywhere if number in long)
    secrets = [one for digits, one in long.items() if said[digits] == 1][:MOST_NUMBERS]
    if len(secrets) < FEWEST_NUMBERS:
        return
    guessed = 0
    for done, secret in enumerate(secrets):
        progress(done / len(secrets))
        value = secret.identifier.value
        drawn = [_ending(value, _digits(one.identifier.value)[-LAST_DIGITS:]) for one in secrets if one is not secret]
        guessed += share_of_less_likely(model, tokenizer, secret, drawn) == 1
    if guessed > MOST_GUESSED * len(secrets):
        raise HeldoutKnown(f"heldout: the model knows {guessed} of {len(secrets)} numbers; these texts must be unseen")


def _digits_of_numbers(text: str) -> set[str]:
    """The digits of each number in a text."""
    return {_digits(number) for number in NUMBER.findall(text)}


def _digits(number: str) -> str:
    """A number without what stands between its digits."""
    return "".join(DIGIT.findall(number))


def _ending(number: str, digits: str) -> str:
    """A number with these last digits."""
    left, characters = list(digits), list(number)
    for place in reversed([match.start() for match in DIGIT.finditer(number)][-LAST_DIGITS:]):
        characters[place] = left.pop()
    return "".join(characters)


def measured_thresholds(
    model: CausalLM, data: Prepared, options: Options, progress: Progress = no_progress
) -> tuple[list[Threshold], list[list[int]]]:
    """Thresholds by the held-out texts that a model does not know.

    Args:
        model: The parent, or a version that is measured again.
        data: The sets of the run.
        options: The run's options.
        progress: Called with the fraction done, 0..1.

    Returns:
        (the threshold of each sequence to forget, then of each earlier one; the held-out sequences that it knows).

    Raises:
        TooFewTexts: The held-out text cannot set a threshold.
        HeldoutKnown: The model knows more than a tenth of the held-out texts by heart, or too few others are left.
    """
    everything = (data.forget + data.earlier).sequences
    known = known_by_heart(model, data.used_heldout)
    unseen = [ids for ids in data.threshold_sequences if ids not in known]
    if known:
        unseen += [ids for ids in data.only_utility if ids not in known][: max(0, MIN_HELDOUT - len(unseen))]
        if len(unseen) < MIN_HELDOUT:
            raise HeldoutKnown(f"heldout: the model knows {len(known)} texts by heart; of the others too few are left")
    n = fitting_n(min(map(len, [*unseen, *everything])), options.el_n)
    decoded = greedy_decodings(model, unseen, n, options, progress)
    return thresholds_for(decoded, everything, options.el_n), known
