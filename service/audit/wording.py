"""What issued text may not say: unlearning by fine-tuning is approximate, and the record is not about a name."""

import re
from collections.abc import Iterator
from typing import Any

FORBIDDEN = (
    "erased", "deleted from the model", "gdpr-compliant", "guarantee", "proof of forgetting", "anonymous",
    "irreversible", "cannot be extracted",
)  # fmt: skip
E_MAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")


def texts(value: Any) -> Iterator[str]:  # any JSON value
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def problem_in(value: Any) -> str | None:
    """What is wrong with the wording of a JSON value, or None."""
    for text in texts(value):
        folded = " ".join(text.casefold().split())
        for word in FORBIDDEN:
            if word in folded:
                return f"the wording claims too much: “{word}”"
        if E_MAIL.search(text):
            return "something like an e-mail address"
    return None
