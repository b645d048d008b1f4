"""Files of a job's working folder: written whole or not at all, and known by their digests."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from service.files import file_sha256, link_or_copy

STAGES = "stages.json"


def replace_file(path: Path, content: bytes | Path) -> None:
    """Put content (or a finished file) at `path` durably, in one step."""
    temporary = content if isinstance(content, Path) else path.with_name(path.name + ".new")
    if isinstance(content, bytes):
        temporary.write_bytes(content)
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)


def take_over(work: Path) -> None:
    """Begin an attempt's folder `<job>/<fence>` with what the attempt before it left whole.

    Its files are linked, and every file of ours is replaced, never written into: an attempt that lost its lease and
    does not know it can change nothing here.
    """
    earlier = [p for p in work.parent.iterdir() if p.name.isdecimal() and int(p.name) < int(work.name)]
    for folder in sorted(earlier, key=lambda p: int(p.name), reverse=True):
        try:
            found = json.loads((folder / STAGES).read_bytes())
            for name in {name for outputs in found["stages"].values() for name in outputs}:
                link_or_copy(folder / name, work / name)
            replace_file(work / STAGES, json.dumps(found).encode())
            break
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            continue  # never began, gone meanwhile or damaged: an older one may be whole
    for folder in earlier:
        shutil.rmtree(folder, ignore_errors=True)


class Stages:
    """Which stages are done: of these inputs, and with outputs that are still what they were."""

    def __init__(self, work: Path, inputs: str) -> None:
        """Read `work/stages.json`; entries of other inputs do not count."""
        self._work, self._inputs, self._path = work, inputs, work / STAGES
        take_over(work)
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            found = {}
        self._stages: dict[str, dict[str, str]] = found.get("stages", {}) if found.get("inputs") == inputs else {}

    def done(self, stage: str) -> bool:
        """Whether the stage's outputs are all there, byte for byte."""
        outputs = self._stages.get(stage)
        if not outputs:
            return False
        return all(self._digest(self._work / name) == digest for name, digest in outputs.items())

    def outputs(self, stage: str) -> list[Path]:
        """The files that a stage left."""
        return [self._work / name for name in self._stages[stage]]

    def digests(self, stage: str, *, below: Path) -> dict[str, str]:
        """path -> sha256 of the stage's outputs as they are now, paths relative to `below`."""
        return {p.relative_to(below).as_posix(): self._digest(p) for p in self.outputs(stage)}

    def finish(self, stage: str, outputs: Sequence[Path], *, undo: Sequence[str] = ()) -> None:
        """Note a stage and its outputs, and that the stages of `undo` are to be done again."""
        for later in undo:
            self._stages.pop(later, None)
        self._stages[stage] = {str(p.relative_to(self._work)): self._digest(p) for p in outputs}
        replace_file(self._path, json.dumps({"inputs": self._inputs, "stages": self._stages}).encode())

    @staticmethod
    def _digest(path: Path) -> str:
        return file_sha256(path) if path.is_file() else ""
