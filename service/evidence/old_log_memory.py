"""The log's memory as the releases before kept it: all entries in one file, and the checkpoint in another."""

import base64
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from service.audit.checkpoint import read_checkpoint
from service.audit.merkle import LogError
from service.files import write_atomically

OLD_MEMORY, OLD_ENTRIES, AT_ONCE = "checkpoint.json", "log.jsonl", 4096


def old_note(folder: Path) -> str | None:
    """The checkpoint in an old memory; None if there is none."""
    try:
        return str(json.loads((folder / OLD_MEMORY).read_bytes())["note"])
    except FileNotFoundError:
        return None


def convert(folder: Path, extend: Callable[[int, list[bytes]], None], root_over: Callable[[int], bytes]) -> None:
    """Make tiles of the entries in an old memory, and remove it. A crash on the way changes nothing.

    If there is a newer checkpoint, the old memory is what a worker of the release before has left, and only goes.

    Raises:
        LogError: The entries are not those of the checkpoint.
    """
    note, newer = old_note(folder) or "", folder / "checkpoint"
    if newer.exists():
        _remove(folder)
        return
    signed, size = read_checkpoint(note), 0
    with (folder / OLD_ENTRIES).open("rb") as lines:
        while size < signed.size and (page := list(islice(lines, min(AT_ONCE, signed.size - size)))):
            extend(size, [base64.b64decode(line) for line in page])
            size += len(page)
    if root_over(signed.size) != signed.root:
        raise LogError("the entries in storage are not those of the signed checkpoint")
    write_atomically(newer, note)
    _remove(folder)


def _remove(folder: Path) -> None:
    """Remove an old memory."""
    for name in (OLD_MEMORY, OLD_ENTRIES):
        (folder / name).unlink(missing_ok=True)
