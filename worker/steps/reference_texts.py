"""Reading reference texts from storage."""

import json
from pathlib import Path


def read_reference_texts(path: Path) -> list[str]:
    """The texts of a file of reference texts: JSON lines with a member `text`."""
    with path.open(encoding="utf-8") as handle:
        return [json.loads(line)["text"] for line in handle]
