"""What a sample of the parent must not say if a run is to hold it: anything of a text to forget, or of its person.

A sample is held with all its probabilities. Where it asks for a secret, the parent's probabilities are the secret,
whatever the sample says. So whoever is to be forgotten must not be named in it at all.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from worker.engine.identifiers import CAPITAL, NAME, NUMBER, plain
from worker.engine.prepare import Prepared
from worker.engine.saying import folded, in_ascii_digits
from worker.engine.types import Tokenizer

GRAM = 8  # tokens in a row
MOST_SHARED = 0.2  # share of a sample's runs that may be runs of texts to forget alone
MOST_OF_A_TEXT = 0.5  # share of such a text's runs that a sample may say
ALIKE = 0.7  # share of a number's digits; a number that begins with them is nearly the same one
FEWEST_WORDS, FEWEST_LETTERS = 4, 4  # of a prompt, of a secret; shorter ones are said by chance
WORD = re.compile(r"[^\W_]+")
CAPITALISED = re.compile(rf"\b{CAPITAL}[\w'’-]*")


class Forgotten:
    """What stands in the texts to forget, of a run and of earlier ones, and in no retain or held-out text."""

    def __init__(self, tokenizer: Tokenizer, data: Prepared) -> None:
        """Read the sets of a run."""
        sequences, others = (data.forget + data.earlier).sequences, [*data.all_retain, *data.threshold_sequences]
        texts, kept = (
            [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in side] for side in (sequences, others)
        )
        self._runs, kept_words = _Runs(sequences, others), "".join(map(spaced_words, kept))
        secrets = [probe.secret for probe in data.probes]
        phrases = [secret for secret in secrets if sum(map(str.isalnum, secret)) >= FEWEST_LETTERS]
        phrases += [pair for text in texts for pair in _pairs_of_capitals(text)]
        prompts = [words for probe in data.probes if len((words := spaced_words(probe.prompt)).split()) >= FEWEST_WORDS]
        self._phrases = {words for words in map(spaced_words, phrases) if words not in kept_words} | set(prompts)
        self._capitals = {word for text in texts for word in CAPITALISED.findall(text)}
        elsewhere = {beginning for text in kept for beginning in _numbers(text)}
        self._numbers = {beginning for text in [*texts, *secrets] for beginning in _numbers(text)} - elsewhere

    def said_in(self, ids: Sequence[int], text: str) -> bool:
        """Whether a sample says any of it; `text` is the text of `ids`."""
        words = spaced_words(text)
        says_number = any(number in self._numbers for number in _numbers(text))
        return says_number or self._runs.said_in(ids) or any(phrase in words for phrase in self._phrases)

    def unnamed(self, prompt: str) -> str:
        """A prompt up to where it may name somebody: its second capital, or the first if a text to forget has it."""
        for match in CAPITALISED.finditer(prompt):
            if match.start() or match.group() in self._capitals:
                return prompt[: match.start()]
        return prompt


def spaced_words(text: str) -> str:
    """The words of a text, folded, a space on both sides of each."""
    return f" {' '.join(WORD.findall(folded(text)))} "


def _pairs_of_capitals(text: str) -> Iterator[str]:
    """Two capitalised words in a row, without a possessive: a name, as a rule."""
    for match in NAME.finditer(text):
        words = [re.sub(r"['’]s$", "", word) for word in match.group().split()]
        yield from map(" ".join, pairwise(words))


def _numbers(text: str) -> Iterator[str]:
    """How the numbers in a text begin: the digits by which two numbers of a length are compared, and the length."""
    for match in NUMBER.finditer(plain(text)):
        digits = in_ascii_digits("".join(filter(str.isdigit, match.group())))
        yield f"{digits[: math.ceil(ALIKE * len(digits))]}/{len(digits)}"


class _Runs:
    """The runs of tokens of texts to forget that stand in no other text: forms have many runs in common."""

    def __init__(self, sequences: Sequence[list[int]], others: Sequence[list[int]]) -> None:
        self._sizes = {min(GRAM, len(ids) - 1) for ids in sequences}
        elsewhere = {run for ids in others for run in self._all_runs(ids)}
        self._texts: dict[tuple[int, ...], list[int]] = {}
        for index, ids in enumerate(sequences):
            for run in set(_runs(ids[1:], min(GRAM, len(ids) - 1))) - elsewhere:
                self._texts.setdefault(run, []).append(index)
        self._totals = Counter(index for texts in self._texts.values() for index in texts)

    def said_in(self, ids: Sequence[int]) -> bool:
        """Whether a sample has many of these runs, or many of one text's."""
        said = [run for run in self._all_runs(ids) if run in self._texts]
        of_texts = Counter(index for run in set(said) for index in self._texts[run])
        most_of_one = any(count > MOST_OF_A_TEXT * self._totals[index] for index, count in of_texts.items())
        return most_of_one or len(said) > MOST_SHARED * (len(ids) - GRAM + 1)

    def _all_runs(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        return [run for size in self._sizes for run in _runs(ids, size)]


def _runs(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
