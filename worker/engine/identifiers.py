"""What identifies a person in a text: e-mail addresses, dates of birth, home addresses and numbers.

The expressions know the words that they are written for: a date is one of birth after words such as "born", and an
address has a common English or German form. What they miss, a submitter can name as a probe.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

LOWER = "".join(c for c in map(chr, range(0x10000)) if c.islower() and c.title() != c)  # where names have capitals
CAPITAL = rf"[^\W\d_{LOWER}]"  # or a letter of a script without cases
BORN = r"(?:born|birth(?:date|day)?|dob|geboren|geb\.|geburts(?:datum|tag)|née?|nacid[oa]|nat[oa] (?:il|a|in))"
BEFORE_DATE = r"[^\w.!?]{1,5}(?:\w[\w'’-]{0,14}+[^\w.!?]{1,2}){0,5}?"
MONTH, DAY = r"[^\W\d_]{3,12}\.?", r"\d{1,2}(?:st|nd|rd|th|er|\.)?"
DATE = rf"{DAY} (?:of |de )?{MONTH}(?: de)?,? \d{{4}}|{MONTH} {DAY},? \d{{4}}|\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}"
CAPITALISED = rf"{CAPITAL}[\w'’-]{{0,30}}"
LIVES = r"(?:address(?: is)?|(?:lived|lives|living|resides|residing) at|moved to)\W{1,3}"
FLAT = r"(?:Flat|Studio|Apartment|Apt|Unit|Suite) \d{1,6}[A-Za-z]?,?"
HOUSE = rf"(?:{FLAT}|\d{{1,6}}[A-Za-z]?(?! {CAPITALISED},? \d{{4}}))"
STREET = r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Court|Boulevard|Blvd|Way|Place|Square|Terrace|Close)\b"
YEAR = r"(?:19|20)\d\d"
NUMBER = re.compile(
    rf"(?<!\d)(?:\d{{1,3}} ?)?\((?!{YEAR}\))\d{{1,5}}\)(?: - |[ -])?\d(?:(?: - |[ ./-])?\d){{3,30}}"  # (area)
    r"|(?<!\d)0\d{1,4} - \d(?:[ ./-]?\d){4,30}"  # no year begins so
    rf"|(?<!\d)(?!{YEAR} )\d{{2,5}} - \d{{2,5}} - \d{{2,5}}(?!\d)"
    r"|\d(?:[ ()./-]?\d){4,30}"
)
SPACES = "\N{NO-BREAK SPACE}\N{FIGURE SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}"
HYPHENS = "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{MINUS SIGN}"  # an en dash is for ranges
KEYBOARD = str.maketrans(SPACES + HYPHENS, " " * len(SPACES) + "-" * len(HYPHENS))
EMAIL_ADDRESS, DATE_OF_BIRTH, HOME_ADDRESS, NUMBER_KIND = "e-mail address", "date of birth", "home address", "number"
ADDRESSES = (EMAIL_ADDRESS, HOME_ADDRESS)
PATTERNS = {  # the group that matches is the identifier; what is one already is no part of another
    EMAIL_ADDRESS: re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    DATE_OF_BIRTH: re.compile(rf"(?<![^\W_])(?i:{BORN}){BEFORE_DATE}({DATE})\b"),
    HOME_ADDRESS: re.compile(
        rf"\b(?i:{LIVES})({HOUSE}(?: (?:St\. )?{CAPITALISED}){{1,4}})"
        rf"|\b(\d{{1,6}}[A-Za-z]?(?: (?:St\. )?{CAPITALISED}){{1,3}} {STREET})"
        rf"|\b({CAPITAL}[\w-]{{1,30}}(?:straße|strasse|str\.|gasse|allee) \d{{1,4}}[a-z]?)\b"
    ),
    NUMBER_KIND: re.compile(rf"\+?(?:{NUMBER.pattern})"),
}
NAME = re.compile(rf"\b{CAPITAL}[\w'’-]{{1,40}}(?: {CAPITAL}[\w'’-]{{1,40}}){{1,3}}")


@dataclass(frozen=True, slots=True)
class Identifier:
    """Something in a text that identifies a person.

    Attributes:
        kind: What one asks for.
        start: Where it begins.
        value: The identifier, as it stands in the text.
    """

    kind: str
    start: int
    value: str = field(repr=False)


def plain(text: str) -> str:
    """Text whose spaces and hyphens are those of a keyboard, each in the place of its own."""
    return text.translate(KEYBOARD)


def all_identifiers(text: str) -> Iterator[Identifier]:
    """Every identifier in a text, kind by kind. None overlaps another."""
    searched = plain(text)
    for kind, pattern in PATTERNS.items():
        left = list(searched)
        for match in pattern.finditer(searched):
            start, end = match.span(match.lastindex or 0)
            left[start:end] = "\n" * (end - start)
            yield Identifier(kind, start, text[start:end].rstrip(".,'’-"))
        searched = "".join(left)
