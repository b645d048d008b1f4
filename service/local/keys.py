"""The keys that each part of the embedded stack may hold."""

from pathlib import Path

from service.bootstrap import KEK
from service.files import write_private


def compute_keys(keys: Path) -> Path:
    """The folder with the keys that a compute worker may hold: the key-encryption key, and no signing key."""
    folder = keys / "compute"
    folder.mkdir(mode=0o700, exist_ok=True)
    original, own = keys / KEK, folder / KEK
    if original.exists():
        key = original.read_bytes()
        if own.exists() and (own.samefile(original) or own.read_bytes() != key):  # a link, or replaced since
            own.unlink()
        write_private(own, key)
    return folder
