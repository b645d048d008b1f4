"""Whether a text says a secret."""

import re
import unicodedata

OTHER_DIGIT = re.compile(r"[^\D0-9]")  # a decimal digit, but none of ASCII


def says(text: str, secret: str) -> bool:
    """Whether it does, as the engine counts an answer: in any case, width and digits, with any marks or spaces between.

    A secret does not begin or end within a number, nor within a word of a script that has cases. One without a letter
    or digit is never said.
    """
    text, sought = _folded(text), "".join(filter(str.isalnum, _folded(secret)))
    places = [place for place, character in enumerate(text) if character.isalnum()]
    characters = "".join(text[place] for place in places)
    at = characters.find(sought) if sought else -1
    while at >= 0:
        start, end = places[at], places[at + len(sought) - 1]
        ends = ((text[start], text[max(0, start - 1) : start]), (text[end], text[end + 1 : end + 2]))
        if not any(_goes_on(*one) for one in ends):
            return True
        at = characters.find(sought, at + 1)
    return False


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit.group())), text)


def _goes_on(character: str, beside: str) -> bool:
    """Whether what stands beside a character is more of the same number or word; of nothing, no."""
    if character.isdigit():
        return beside.isdecimal()
    return character.upper() != character.lower() and beside.isalnum() and not beside.isdecimal()
