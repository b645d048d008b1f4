"""What numbers a caller is told: exact means of few requests are about a person, and go to auditors alone.

Whoever may download the weights could test guesses against them (EVIDENCE; the certificate does the same).
"""

from typing import Any

from service.audit.certificate import FEWEST
from service.db.keys import Caller

OPEN = frozenset({  # of held-out text, of the run, or counts: everything else in metrics and events may be of a request
    "limits", "el_limit", "ma_limit", "heldout_perplexity", "perplexity", "utility", "retain_loss", "memorised",
    "requests", "retain_excluded", "heldout_excluded", "earlier", "epochs", "epoch", "met", "seconds", "stage",
    "progress", "outcome", "reason", "attempt", "delay_seconds", "request",
})  # fmt: skip


def told(numbers: dict[str, Any], requests: int | None, key: Caller) -> dict[str, Any]:
    """Numbers over so many memorised requests, null where the caller may not know them; None: not known yet, so few."""
    if {"audit", "admin"} & set(key.scopes) or (requests or 0) >= FEWEST:
        return numbers
    return {name: value if name in OPEN else None for name, value in numbers.items()}
