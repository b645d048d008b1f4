"""Whether a text says a secret, in whatever form."""

import re
import unicodedata
from collections.abc import Sequence

NOTHING = r"[^\s\S]"  # matches no character
OTHER_DIGIT = re.compile(r"[^\D0-9]")  # a decimal digit, but none of ASCII
BETWEEN = "\n\N{CYRILLIC LETTER MULTIOCULAR O}\n"  # a letter that is in no secret, so that none goes on over it


def folded(text: str) -> str:
    """Text in which the forms and cases of a letter are one, and so are the decimal digits of all scripts."""
    return in_ascii_digits(unicodedata.normalize("NFKC", text).casefold())


def in_ascii_digits(text: str) -> str:
    """Text with the decimal digits of all scripts as 0 to 9."""
    return OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit.group())), text)


def secret_pattern(secret: str, *, whole: bool = True) -> re.Pattern[str]:
    """Matches a secret in folded text, with any marks and spaces between its letters and digits.

    It does not begin or end in the middle of a number, nor in the middle of a word of a script that has cases: such
    scripts have spaces between words. A secret of marks alone matches nowhere. One that is not `whole` is only the
    beginning of a secret, and may go on.
    """
    characters = [character for character in folded(secret) if character.isalnum()]
    if not characters:
        return re.compile(r"(?!)")
    body = r"[\W_]*".join(map(re.escape, characters))
    before, after = _neighbours(characters[0]), _neighbours(characters[-1]) if whole else NOTHING
    return re.compile(rf"(?<!{before}){body}(?!{after})")


def _neighbours(character: str) -> str:
    """What may not stand beside this character at an end of a secret."""
    if character.isdigit():
        return r"\d"
    return r"[^\W\d_]" if character.upper() != character.lower() else NOTHING


class Texts:
    """Texts that can be asked whether one of them says a secret."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Fold them once."""
        self._all, self._said = BETWEEN.join(map(folded, texts)), dict[str, bool]()

    def say(self, secret: str) -> bool:
        """Whether one of them says it."""
        if secret not in self._said:
            self._said[secret] = secret_pattern(secret).search(self._all) is not None
        return self._said[secret]
