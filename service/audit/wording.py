"""The words that certificates may not use: unlearning by fine-tuning is approximate, and a certificate names nobody."""

import re
from collections.abc import Iterator

FORBIDDEN = (
    "erased",
    "deleted from the model",
    "gdpr-compliant",
    "guarantee",
    "proof of forgetting",
    "anonymous",
    "irreversible",
    "cannot be extracted",
)
E_MAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")


def texts(value: object) -> Iterator[str]:
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


def problem_in(value: object) -> str | None:
    """The first forbidden claim or e-mail address in a JSON value, as a message, or None."""
    for text in texts(value):
        folded = " ".join(text.casefold().split())
        for word in FORBIDDEN:
            if word in folded:
                return f"the wording claims too much: “{word}”"
        if E_MAIL.search(text):
            return "something like an e-mail address"
    return None
