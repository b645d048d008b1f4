"""Asks witnesses to cosign the log's checkpoints (C2SP tlog-witness), and keeps the last one that was cosigned."""

import base64
import datetime as dt
from collections.abc import Sequence
from contextlib import suppress

import httpx

from service.audit.checkpoint import read_checkpoint
from service.audit.cosignature import cosigned_at
from service.audit.merkle import LogError, consistency_proof
from service.audit.tiles import TiledTree
from service.evidence.log_memory import WITNESSED, LogMemory
from service.observability.logging import get_logger
from service.setting_types import Witness

logger = get_logger(__name__)
ANSWER_SECONDS, ANSWER_BYTES = 10.0, 65_536
LATE = dt.timedelta(days=1)


class Witnesses:
    """The witnesses of a log, and what they cosigned last."""

    def __init__(self, witnesses: Sequence[Witness], memory: LogMemory) -> None:
        """Ask these witnesses about the log of this memory."""
        self._witnesses, self._memory = witnesses, memory

    def note(self) -> str | None:
        """The last checkpoint that a witness cosigned, with the cosignatures; None if there is none."""
        with suppress(FileNotFoundError):
            return self._memory.read(WITNESSED).decode()
        return None

    def late(self) -> list[str]:
        """The names of witnesses whose cosignature in the last cosigned checkpoint is older than a day, or missing.

        A log that has not grown since is not cosigned again: then nobody is late.
        """
        kept, signed, since = self.note(), self._memory.note(), dt.datetime.now(dt.UTC) - LATE
        times = {
            key.name: kept and cosigned_at(kept, key) for key in (witness.witness_key for witness in self._witnesses)
        }
        if kept and signed and read_checkpoint(kept) == read_checkpoint(signed):
            return [name for name, at in times.items() if not at]
        return [name for name, at in times.items() if not at or at < since]

    def cosign(self, note: str) -> None:
        """Have a signed checkpoint cosigned, unless each witness has done so already.

        A witness that does not answer, or refuses, is logged: whoever wants its cosignature finds an older one.
        """
        kept = self.note()
        last = read_checkpoint(kept) if kept else None
        known = kept.partition("\n\n")[2] if kept and last == read_checkpoint(note) else ""
        lines = {witness.url: witness.witness_key.line_in(known) for witness in self._witnesses}
        missing = [witness for witness in self._witnesses if not lines[witness.url]]
        for witness in missing:
            try:
                lines[witness.url] = self._ask(witness, note, last.size if last else 0)
            except (httpx.HTTPError, LogError, ValueError) as error:
                logger.warning("a witness did not cosign", name=witness.witness_key.name, error=str(error))
        given = [line for line in lines.values() if line]
        if missing and given:
            self._store(note + "".join(line + "\n" for line in given))

    def _store(self, note: str) -> None:
        """Keep a cosigned checkpoint, unless another process has kept a newer one meanwhile."""
        with self._memory.held():
            kept = self.note()
            if kept is None or read_checkpoint(kept).size <= read_checkpoint(note).size:
                self._memory.write(WITNESSED, note.encode())

    def _ask(self, witness: Witness, note: str, older: int) -> str:
        """The signature line of a witness, which may say that it knows the log at another size.

        Raises:
            HTTPError: It does not answer, or refuses.
            LogError: Its cosignature is not one, or it knows a larger log.
            ValueError: It answers something else.
        """
        checkpoint, key = read_checkpoint(note), witness.witness_key
        answer = self._send(witness, note, min(older, checkpoint.size))
        if answer.status_code == httpx.codes.CONFLICT:
            answer = self._send(witness, note, int(answer.text))
        answer.raise_for_status()
        line = key.line_in(answer.text)
        if line is None:
            raise LogError("the answer has no cosignature of this witness")
        key.check(checkpoint.body, line)
        return line

    def _send(self, witness: Witness, note: str, older: int) -> httpx.Response:
        """Send `add-checkpoint`, with the proof that the log goes on from an older size."""
        size = read_checkpoint(note).size
        tree = TiledTree(size, self._memory.read_tile)
        proof = [base64.b64encode(digest).decode() for digest in consistency_proof(tree.subtree, size, older)]
        content = "\n".join([f"old {older}", *proof, "", note])
        url = f"{witness.url.rstrip('/')}/add-checkpoint"
        with httpx.stream("POST", url, content=content, timeout=ANSWER_SECONDS, follow_redirects=False) as answer:
            body = b""
            for part in answer.iter_bytes():
                body += part
                if len(body) > ANSWER_BYTES:
                    raise ValueError("the answer is too long")
        return httpx.Response(answer.status_code, content=body, request=answer.request)
