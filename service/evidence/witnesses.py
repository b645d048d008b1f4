"""Asks witnesses to cosign the log's checkpoints (C2SP tlog-witness), and keeps the last one that was cosigned."""

import base64
import datetime as dt
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import httpx

from service.audit.checkpoint import read_checkpoint
from service.audit.cosignature import WitnessKey, cosigned_at
from service.audit.merkle import LogError, consistency_proof
from service.audit.tiles import TiledTree
from service.evidence.log_memory import WITNESSED, LogMemory
from service.observability.logging import get_logger
from service.setting_types import Witness

logger = get_logger(__name__)
ANSWER_SECONDS, ANSWER_BYTES, ASK_SECONDS = 10.0, 65_536, 30.0
AGAIN = dt.timedelta(hours=12)  # a log that rests is cosigned anew, so that the cosignature is not old
LATE = dt.timedelta(days=1)


class Witnesses:
    """The witnesses of a log, and what each cosigned last."""

    def __init__(self, witnesses: Sequence[Witness], memory: LogMemory) -> None:
        """Ask these witnesses about the log of this memory."""
        self._witnesses, self._memory, self._asking = witnesses, memory, threading.Lock()

    def notes(self) -> dict[str, str]:
        """Name of a witness -> the last checkpoint that it cosigned, with its cosignature."""
        notes = {}
        for key in (witness.witness_key for witness in self._witnesses):
            with suppress(FileNotFoundError):
                notes[key.name] = self._memory.read(f"{WITNESSED}/{key.key_id.hex()}").decode()
        return notes

    def late(self) -> list[str]:
        """The names of the witnesses that have cosigned nothing for LATE."""
        since, notes = dt.datetime.now(dt.UTC) - LATE, self.notes()
        return [key.name for key in (one.witness_key for one in self._witnesses) if not _is_newer(notes, key, since)]

    def cosign(self, note: str, go_on: Callable[[], bool] = lambda: True) -> None:
        """Have a signed checkpoint cosigned by the witnesses that have not done so, or not for AGAIN.

        A witness that does not answer, or refuses, is logged: whoever wants its cosignature finds an older one.
        """
        if not self._asking.acquire(blocking=False):
            return  # another thread still waits for one
        try:
            notes, since = self.notes(), dt.datetime.now(dt.UTC) - AGAIN
            for witness in self._witnesses:
                key, last = witness.witness_key, notes.get(witness.witness_key.name)
                is_same = last is not None and read_checkpoint(last) == read_checkpoint(note)
                if go_on() and not (is_same and _is_newer(notes, key, since)):
                    self._have_cosigned(witness, note, read_checkpoint(last).size if last else 0)
        finally:
            self._asking.release()

    def _have_cosigned(self, witness: Witness, note: str, older: int) -> None:
        """Ask one witness, for ASK_SECONDS at most, and keep its cosignature."""
        answers: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._ask(witness, note, older))
            except Exception as error:  # for whoever waits
                answers.put(error)

        threading.Thread(target=ask, name="witness", daemon=True).start()
        key = witness.witness_key
        try:
            answer = answers.get(timeout=ASK_SECONDS)  # it may send a byte now and then
        except queue.Empty:
            answer = TimeoutError("no answer")
        if isinstance(answer, Exception):
            logger.warning("a witness did not cosign", name=key.name, error=f"{type(answer).__name__}: {answer}")
            return
        with self._memory.held():
            self._memory.write(f"{WITNESSED}/{key.key_id.hex()}", f"{note}{answer}\n".encode())

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


def _is_newer(notes: Mapping[str, str], key: WitnessKey, since: dt.datetime) -> bool:
    """Whether a witness has cosigned something since then."""
    at = cosigned_at(notes[key.name], key) if key.name in notes else None
    return at is not None and at > since
