"""The keys that each part of the embedded stack may hold."""

from pathlib import Path

from service.bootstrap import KEK


def compute_keys(keys: Path) -> Path:
    """The folder with the keys that a compute worker may hold: the key-encryption key, and no signing key."""
    folder = keys / "compute"
    folder.mkdir(mode=0o700, exist_ok=True)
    original, link = keys / KEK, folder / KEK
    if original.exists() and not (link.exists() and link.samefile(original)):  # a restored key is another file
        link.unlink(missing_ok=True)
        link.hardlink_to(original)
    return folder
