"""Other digits for what identifies a person: random ones, in the formats that unseen text shows."""

import random
import re
from collections import Counter
from collections.abc import Sequence

from worker.engine.identifiers import DATE_OF_BIRTH, Identifier, all_identifiers, plain
from worker.engine.saying import NOTHING

FEWEST_DIGITS = 3  # of an identifier that can have others
TRIES = 32
MIN_ALIKE = 3  # unseen identifiers that show a form
FIRST_YEAR, LAST_YEAR = 1940, 2009  # of birth
DIGIT = re.compile("[0-9]")


def identifiers_with_digits(text: str) -> list[Identifier]:
    """The identifiers in a text that have so many digits that few guess them."""
    return [one for one in all_identifiers(text) if len(DIGIT.findall(_masked(one))) >= FEWEST_DIGITS]


class OtherDigits:
    """Draws identifiers that differ from given ones in their digits alone.

    A shape is an identifier with each digit as 0 and each word as one letter. Digits that are the same in all unseen
    ones of a shape belong to the format, and stay.
    """

    def __init__(self, unseen: Sequence[str], seed: int) -> None:
        """Take over the formats that unseen texts show; `seed` seeds the digits."""
        self._draw = random.Random(seed)  # no secret
        shown = [one for text in unseen for one in identifiers_with_digits(text)]
        self._dates = Counter(_form(one) for one in shown if one.kind == DATE_OF_BIRTH)
        self._formats = _formats([one for one in shown if one.kind != DATE_OF_BIRTH and plain(_masked(one)).isascii()])

    def are_shown(self, one: Identifier) -> bool:
        """Whether unseen texts show what others there may be: dates of its form, or identifiers of its shape."""
        return self._dates[_form(one)] >= MIN_ALIKE if one.kind == DATE_OF_BIRTH else _shape(one) in self._formats

    def drawn(self, one: Identifier) -> str:
        """The identifier with other digits; the same only if its format has no others."""
        draws = (self._date(one.value) if one.kind == DATE_OF_BIRTH else self._number(one) for _ in range(TRIES))
        return next((other for other in draws if other != one.value), one.value)

    def instead(self, text: str, known: Sequence[Identifier]) -> str:
        """The text with other digits in these identifiers; one that stands there twice has the same ones."""
        others = {one.value: self.drawn(one) for one in sorted(known, key=lambda one: -len(one.value))}
        values = "|".join(map(re.escape, others)) or NOTHING
        return re.sub(rf"(?<!\d)(?:{values})(?!\d)", lambda match: others[match.group()], text)

    def _number(self, one: Identifier) -> str:
        """Random digits of its format; those of an e-mail's domain stay."""
        masked, (own, at, domain) = _masked(one), one.value.partition("@")
        pattern = self._formats.get(_shape(one), DIGIT.sub("?", masked))
        marked = zip(pattern, masked, strict=True)
        drawn = "".join(self._draw.choice("0123456789") if mark == "?" else own for mark, own in marked)
        digits = iter(DIGIT.findall(drawn))
        return DIGIT.sub(lambda _: next(digits), own) + at + domain

    def _date(self, value: str) -> str:
        """A random date of its form. The name of a month stays, and so does a day with an ending, such as 3rd."""
        in_words, has_year = re.search(r"[^\W\d_]", value), re.search(r"[0-9]{4}", value)

        def part(match: re.Match[str]) -> str:
            size = len(match.group())
            lowest, highest = (10, 28) if in_words else (1, 12)
            if size == 4:
                lowest, highest = FIRST_YEAR, LAST_YEAR
            elif size == 1:
                lowest, highest = 1, 9
            elif not has_year and match.end() == len(value):
                lowest, highest = FIRST_YEAR % 100, 99
            return f"{self._draw.randint(lowest, highest):0{size}}"

        return re.sub(r"\b[0-9]{1,4}\b", part, value)


def _masked(one: Identifier) -> str:
    """An identifier with one letter for each word; of an e-mail address what stands before its domain."""
    return re.sub(r"[^\W\d_]+", "a", one.value.partition("@")[0])


def _form(one: Identifier) -> str:
    """A date with one letter for each word and 0 for each number."""
    return re.sub(r"\d+", "0", _masked(one))


def _shape(one: Identifier) -> tuple[str, str]:
    """Its kind, and the masked identifier with each digit as 0."""
    return one.kind, re.sub(r"\d", "0", _masked(one))


def _formats(shown: Sequence[Identifier]) -> dict[tuple[str, str], str]:
    """Shape -> format: its constant digits, and ? for each digit that changes."""
    by_shape: dict[tuple[str, str], list[str]] = {}
    for one in shown:
        by_shape.setdefault(_shape(one), []).append(_masked(one))
    return {
        shape: "".join(digits[0] if len(set(digits)) == 1 else "?" for digits in zip(*alike, strict=True))
        for shape, alike in by_shape.items()
        if len(alike) >= MIN_ALIKE
    }
