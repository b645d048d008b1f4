"""Files of a job's working folder: written completely or not at all, and identified by their digests."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from service.files import file_sha256, link_or_copy
from service.storage.interface import STAGES_FILE


def replace_file(path: Path, content: bytes | Path) -> None:
    """Put content, or a complete file, at `path`: durably and in one step."""
    temporary = content if isinstance(content, Path) else path.with_name(path.name + ".new")
    if isinstance(content, bytes):
        temporary.write_bytes(content)
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)


def take_over(work: Path) -> None:
    """Start the folder `<job>/<fence>` of an attempt with the complete files of the attempt before it.

    The files are linked, and every attempt replaces files instead of writing into them: an earlier attempt that lost
    its lease without noticing cannot change a file here.
    """
    earlier = [path for path in work.parent.iterdir() if path.name.isdecimal() and int(path.name) < int(work.name)]
    for folder in sorted(earlier, key=lambda path: int(path.name), reverse=True):
        try:
            state = json.loads((folder / STAGES_FILE).read_bytes())
            for name in {name for outputs in state["stages"].values() for name in outputs}:
                link_or_copy(folder / name, work / name)
            replace_file(work / STAGES_FILE, json.dumps(state).encode())
            break
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not begun, removed meanwhile or damaged: an older folder may be complete
    for folder in earlier:
        shutil.rmtree(folder, ignore_errors=True)


class Stages:
    """The stages that are done: for the same inputs, and with unchanged outputs."""

    def __init__(self, work: Path, inputs: str) -> None:
        """Read `work/stages.json`, and ignore it if it is for other inputs."""
        self._work, self._inputs, self._path = work, inputs, work / STAGES_FILE
        take_over(work)
        try:
            state = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            state = {}
        self._stages: dict[str, dict[str, str]] = state.get("stages", {}) if state.get("inputs") == inputs else {}

    def done(self, stage: str) -> bool:
        """Whether all outputs of the stage exist, unchanged to the byte."""
        outputs = self._stages.get(stage)
        if not outputs:
            return False
        return all(self._digest(self._work / name) == digest for name, digest in outputs.items())

    def outputs(self, stage: str) -> list[Path]:
        """The files that a stage made."""
        return [self._work / name for name in self._stages[stage]]

    def digests(self, stage: str, *, below: Path) -> dict[str, str]:
        """Path relative to `below` -> present sha256, for each output of a stage."""
        return {path.relative_to(below).as_posix(): self._digest(path) for path in self.outputs(stage)}

    def finish(self, stage: str, outputs: Sequence[Path], *, undo: Sequence[str] = ()) -> None:
        """Store that a stage is done and made these outputs; the stages of `undo` must be done again."""
        for later in undo:
            self._stages.pop(later, None)
        self._stages[stage] = {str(path.relative_to(self._work)): self._digest(path) for path in outputs}
        replace_file(self._path, json.dumps({"inputs": self._inputs, "stages": self._stages}).encode())

    @staticmethod
    def _digest(path: Path) -> str:
        return file_sha256(path) if path.is_file() else ""
