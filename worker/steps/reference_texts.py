"""Retain and held-out texts, as storage keeps them."""

import json
from pathlib import Path


def read_reference_texts(path: Path) -> list[str]:
    """The texts of a stored corpus."""
    with path.open(encoding="utf-8") as handle:
        return [json.loads(line)["text"] for line in handle]
