"""Changes to releases, and what the verifier says of them."""

import json
from pathlib import Path

import pytest

from service.audit.verification import VerificationError
from service.audit.verify import verify

FILES = [{"path": "model/a_b.safetensors", "size": 1, "sha256": "0" * 64}]


def refused(release: Path, trust: Path | None = None, parent: Path | None = None) -> VerificationError:
    """What the verifier says of a release that it does not take."""
    with pytest.raises(VerificationError) as caught:
        verify(release, trust, parent)
    assert "verified" not in caught.value.reason
    return caught.value


def rewrite(path: Path, change) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def mark(release: Path, role: str, **marks) -> None:
    """Mark a key of trust.json."""
    rewrite(release / "trust.json", lambda t: [k.update(marks) for k in t["keys"] if k["role"] == role])


LATER, EARLIER = "2999-01-01T00:00:00+00:00", "2001-01-01T00:00:00+00:00"
