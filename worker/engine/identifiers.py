"""What identifies a person in a text: e-mail addresses, numbers, dates of birth and home addresses.

The expressions know what they are written for: dates of birth in the order of several languages, addresses in the
English and the German one. What they miss, a submitter can name as a probe.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

BORN = r"(?:born|birth|geboren|geb\.|née?|nacid[oa]|nat[oa])\W{1,3}(?:\w{1,10}\W{1,2}){0,3}?"
MONTH, DAY = r"[^\W\d_]{3,12}\.?", r"\d{1,2}(?:st|nd|rd|th|er|\.)?"
DATE = rf"{DAY} (?:of |de )?{MONTH}(?: de)?,? \d{{4}}|{MONTH} {DAY},? \d{{4}}|\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}"
CAPITALISED = r"[^\W\d_a-z][\w'’-]{0,30}"
LIVES = r"(?:address|lives|resides|moved)\W{1,3}(?:(?:is|at|to)\W{1,2})?"
STREET = r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Court|Boulevard|Blvd|Way|Place|Square|Terrace|Close)\b"
NUMBER = re.compile(r"\+?\d(?:[ ()./-]?\d){4,30}")
PATTERNS = {  # a group that matches is the identifier; a date of birth is no other number
    "e-mail address": re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "date of birth": re.compile(rf"\b(?i:{BORN})({DATE})\b"),
    "number": NUMBER,
    "home address": re.compile(
        rf"\b(?i:{LIVES})(\d{{1,6}}[A-Za-z]?(?: {CAPITALISED}){{1,4}})"
        rf"|\b(\d{{1,6}}[A-Za-z]?(?: {CAPITALISED}){{0,3}} {STREET})"
        r"|\b([^\W\d_a-z][\w-]{1,30}(?:straße|strasse|weg|platz|gasse|allee) \d{1,4}[a-z]?)\b"
    ),
}
OF_A_KIND = 3  # in a text
NAME = re.compile(r"\b[^\W\d_a-z][\w'’-]{1,40}(?: [^\W\d_a-z][\w'’-]{1,40}){1,3}")


@dataclass(frozen=True, slots=True)
class Identifier:
    """Something in a text that identifies a person.

    Attributes:
        kind: What one asks for.
        start: Where it begins.
        value: It.
    """

    kind: str
    start: int
    value: str = field(repr=False)


def identifiers(text: str) -> Iterator[Identifier]:
    """The first ones of each kind, each value once."""
    values = set[str]()
    for kind, pattern in PATTERNS.items():
        for match in islice(pattern.finditer(text), OF_A_KIND):
            group = match.lastindex or 0
            value = match.group(group).rstrip(".,'’-")
            if value not in values:
                values.add(value)
                yield Identifier(kind, match.start(group), value)
