"""Where a text names a person: what an approver looks at first."""

import re
from collections.abc import Iterator
from typing import TypedDict

from service.domain.subject import Subject
from service.schemas.subjects import SNIPPET
from service.subjects.identifiers import PHONE_LIKE

BEFORE = 100  # characters that are shown before the first place
LEAST_DIGITS = 7  # at the end of two numbers, so that they count as the same


class Excerpt(TypedDict):
    """A part of a text, and what of it names the person."""

    text: str
    marked: list[str]


def excerpt(text: str, subject: Subject) -> Excerpt:
    """The beginning of a text; if it names the person later only, the part around the first place."""
    places = [text.find(part) for part in marked_parts(text, subject)]
    first = min(places, default=0)
    start = 0 if first < SNIPPET - BEFORE else first - BEFORE
    shown = text[start : start + SNIPPET]
    return {"text": f"… {shown}" if start else shown, "marked": marked_parts(shown, subject)}


def marked_parts(text: str, subject: Subject) -> list[str]:
    """The parts of a text that are identities or names of a person, as they are written there.

    Hashed identities cannot be seen in a text.
    """
    return list(dict.fromkeys(_parts(text, subject)))


def _parts(text: str, subject: Subject) -> Iterator[str]:
    raw = [identity for identity in subject.get("identities", []) if identity.get("format", "raw") == "raw"]
    for identity in raw:
        if identity["type"] == "phone":
            yield from _numbers(text, identity["value"])
        else:
            yield from re.findall(re.escape(identity["value"].strip()), text, re.IGNORECASE)
    for name in subject.get("names", []):
        spaced = r"\s+".join(map(re.escape, name.split()))
        yield from re.findall(rf"(?<!\w){spaced}(?!\w)", text, re.IGNORECASE)


def _numbers(text: str, value: str) -> Iterator[str]:
    """The numbers in a text with the same last digits as a telephone number."""
    wanted = re.sub(r"\D", "", value)[-LEAST_DIGITS:]
    for match in PHONE_LIKE.finditer(text):
        if len(wanted) == LEAST_DIGITS and re.sub(r"\D", "", match.group()).endswith(wanted):
            yield match.group()
