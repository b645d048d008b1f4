"""A small file system of its own for storage, which can be full or read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.local.process import wait_until

STORAGE_BYTES = 256 * 2**20


class SmallStorage:
    """The storage folder of a stack, on a file system in memory."""

    def __init__(self, folder: Path) -> None:
        """Nothing is mounted yet."""
        self.folder = folder

    def mount(self) -> bool:
        """Whether this user may mount it."""
        self.folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={STORAGE_BYTES}", "unlearnd-chaos", str(self.folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def unmount(self) -> None:
        """Let go of it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    @contextmanager
    def fails(self, fault: str) -> Iterator[None]:
        """No byte more can be written, really: "read-only" or "disk full"."""
        if fault == "read-only":
            remount = ["mount", "-o", "remount,ro", str(self.folder)]
            # Not while somebody writes a file there; who is halted may never end.
            assert wait_until(lambda: subprocess.run(remount, check=False).returncode == 0, 60), "somebody writes"
        else:
            with (self.folder / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(1 << 16))
                except OSError:
                    pass
        try:
            yield
        finally:
            if fault == "read-only":
                subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
            else:
                (self.folder / "ballast").unlink()
