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
# One character before the @ is enough. More would have a long word read again from each of its characters.
E_MAIL = re.compile(r"[^\s@]@[^\s@]+\.[^\s@]")


def texts(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys included, however deep it is."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += (part for key, member in reversed(item.items()) for part in (member, key))
        elif isinstance(item, list):
            left += reversed(item)


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
