"""What numbers a caller is told: exact means of few requests are about a person, and go to auditors alone.

Whoever may download the weights could test guesses against them (EVIDENCE; the certificate does the same).
"""

from typing import Any

from service.audit.certificate import FEWEST
from service.db.keys import Caller

ABOUT_REQUESTS = ("el", "ma", "loss")  # at the top of a job's metrics and of an epoch
MEANS = ("before", "after")


def told(numbers: dict[str, Any], requests: int | None, key: Caller) -> dict[str, Any]:
    """Numbers over so many memorised requests, null where the caller may not know them; None: not known yet, so few."""
    if {"audit", "admin"} & set(key.scopes) or (requests or 0) >= FEWEST:
        return numbers
    hidden: dict[str, Any] = {name: None for name in ABOUT_REQUESTS if name in numbers}
    hidden |= {name: dict.fromkeys(numbers[name]) for name in MEANS if numbers.get(name)}
    return numbers | hidden
