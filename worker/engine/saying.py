"""Whether a text says a secret, in whatever form."""

import re
import unicodedata
from collections.abc import Sequence


def folded(text: str) -> str:
    """Text in which the forms and cases of a letter are one."""
    return unicodedata.normalize("NFKC", text).casefold()


def secret_pattern(secret: str) -> re.Pattern[str]:
    """Matches a secret in folded text, with any marks and spaces between its letters and digits.

    It does not begin or end in the middle of a number, nor in the middle of a word of a script that has cases: such
    scripts have spaces between words. A secret of marks alone matches nowhere.
    """
    characters = [character for character in folded(secret) if character.isalnum()]
    if not characters:
        return re.compile(r"(?!)")
    body = r"[\W_]*".join(map(re.escape, characters))
    return re.compile(rf"(?<!{_neighbours(characters[0])}){body}(?!{_neighbours(characters[-1])})")


def _neighbours(character: str) -> str:
    """What may not stand beside this character at an end of a secret."""
    has_case = not character.isdigit() and character.upper() != character.lower()
    return r"[^\W\d_]" if has_case else r"\d"


class Texts:
    """Texts that can be asked whether one of them says a secret."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Fold them once."""
        self._all = "\n".join(map(folded, texts))

    def say(self, secret: str) -> bool:
        """Whether one of them says it."""
        return secret_pattern(secret).search(self._all) is not None
