"""The log files of the embedded stack's processes: their rotation, and their last line."""

import errno
import os
import shutil
from pathlib import Path

TAIL_BYTES = 8192


def rotate(log: Path, *, max_bytes: int, kept: int) -> bool:
    """Move the content of a log over `max_bytes` to `LOG.1`, and earlier content on to `LOG.2` up to `LOG.KEPT`.

    The process keeps its file open and appends to it. So the content is copied, and the file is emptied. A line that is
    written between the two is lost. 0 for `max_bytes` switches rotation off.

    Returns:
        Whether the log was rotated.

    Raises:
        OSError: The disk is full, for example. All content is still there.
    """
    if not max_bytes or not log.exists() or log.stat().st_size <= max_bytes:
        return False
    if kept:
        copy = log.with_name(f"{log.name}.part")
        try:
            if shutil.disk_usage(log.parent).free < log.stat().st_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log.parent))
            shutil.copyfile(log, copy)
        except OSError:
            copy.unlink(missing_ok=True)
            raise
        for number in range(kept - 1, 0, -1):
            if (earlier := log.with_name(f"{log.name}.{number}")).exists():
                earlier.replace(log.with_name(f"{log.name}.{number + 1}"))
        copy.replace(log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)
    return True


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, or nothing if there is none."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = handle.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
