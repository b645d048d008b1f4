"""The keeper of the log: signs checkpoints of the database's log and remembers them outside the database.

The memory is in the ledger of the storage folder, which no database backup restores. It holds the last checkpoint and
every entry that the checkpoint covers. The keeper signs a log only if it begins with the entries that were signed
before, so a rewritten or rolled-back database gets no signature. A database that was restored from an older backup
gets its lost entries back from the memory.

Signing reads all leaf hashes, 32 bytes for each entry: 0.2 s for 100,000 entries.
"""

import base64
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.audit.checkpoint import Checkpoint, Proof, open_checkpoint, sign_checkpoint
from service.audit.log_entry import LogState
from service.audit.merkle import LogError, inclusion_proof, leaf_hash, root
from service.db import log_entries
from service.db.session import Database
from service.evidence.keyring import Keyring
from service.files import CachedFile, fsync, write_atomically

ENTRIES, MEMORY = "log.jsonl", "checkpoint.json"
LOCK_TIMEOUT_SECONDS, POLL_SECONDS = (
    10.0,
    0.05,
)  # seconds: the longest wait for the lock, and the pause between two attempts


class LogForked(Exception):
    """The database's log does not begin with the entries that were signed before."""


class LogBusy(Exception):
    """Another process has held the log's memory for too long and may be frozen; the caller tries again later."""


class LogMemory(LogState):
    """What the keeper remembers: the last checkpoint, and the length in bytes of the entries that it covers."""

    note: str
    bytes: int


class LogKeeper:
    """Signs checkpoints and remembers them; control workers hold the key, every process may read the memory."""

    def __init__(self, db: Database, folder: Path, keyring: Keyring, origin: str) -> None:
        """Keep the memory of the log of `db` in `folder`; `origin` is the name of the log."""
        self._db, self._folder, self._keyring, self._origin = db, folder, keyring, origin
        self._note = CachedFile(folder / MEMORY, lambda data: str(json.loads(data)["note"]))

    @property
    def origin(self) -> str:
        """The name of the log; a log that replaces an ended one has a number at its end."""
        number = 1 + len(list(self._folder.glob("ended-*")))
        return self._origin if number == 1 else f"{self._origin}/{number}"

    @property
    def key(self) -> Ed25519PrivateKey:
        """The key that signs the checkpoints."""
        key = self._keyring.private("log")
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("the log's key is ed25519")
        return key

    def checkpoint(self) -> str | None:
        """The last signed checkpoint, or None before the first."""
        try:
            return self._note()
        except FileNotFoundError:
            return None

    def sign(self) -> tuple[list[bytes], str]:
        """Sign a checkpoint of the current log; returns the leaf hashes and the checkpoint's note.

        Raises:
            LogForked: The log does not begin with the entries that were signed before; nothing was signed.
            LogBusy: Another process holds the memory.
        """
        with self._locked() as handle:
            memory = self._memory()
            with self._db.reading() as session:
                leaves = log_entries.leaf_hashes(session)
                size = memory["size"]
                if len(leaves) < size or root(leaves[:size]).hex() != memory["root"]:
                    raise LogForked(f"the {len(leaves)} entries do not begin with the {size} signed ones")
                entries = log_entries.entries(session, size, len(leaves) - size)
            if len(leaves) == size and self._is_ours(memory["note"]):
                return leaves, memory["note"]
            handle.truncate(memory["bytes"])  # removes entries that a crash left after the last checkpoint
            handle.seek(memory["bytes"])
            for entry in entries:
                handle.write(base64.b64encode(entry) + b"\n")
            handle.flush()
            fsync(Path(handle.name))
            checkpoint = Checkpoint(self.origin, len(leaves), root(leaves))
            note = sign_checkpoint(checkpoint, self.key)
            self._remember({"note": note, "size": len(leaves), "root": checkpoint.root.hex(), "bytes": handle.tell()})
            return leaves, note

    def last_signed(self) -> LogState:
        """The state of the log at the last signed checkpoint; before the first one, that of the empty log."""
        memory = self._memory()
        return {"size": memory["size"], "root": memory["root"]}

    def _is_ours(self, note: str) -> bool:
        """Whether the current key signed a note; `sign` signs a note of a replaced key again."""
        try:
            return bool(note) and bool(open_checkpoint(note, [self.key.public_key()]))
        except LogError:
            return False

    def prove(self, index: int) -> str:
        """The content of a proof file for entry `index`, against a checkpoint of the current log.

        Raises:
            LogForked: The log does not begin with the entries that were signed before.
        """
        leaves, note = self.sign()
        with self._db.reading() as session:
            (entry,) = log_entries.entries(session, index, 1)
        return Proof(entry, index, inclusion_proof(leaves, index), note).dumps()

    def missing_entries(self) -> list[bytes]:
        """The signed entries that the database lacks; empty unless the database was restored from a backup.

        Raises:
            LogForked: The entries of the database differ from the signed ones.
            LogBusy: Another process holds the memory.
        """
        if self.checkpoint() is None:
            return []
        with self._locked() as handle:
            memory = self._memory()
            signed = [base64.b64decode(line) for line in handle.read(memory["bytes"]).splitlines()]
        with self._db.reading() as session:
            leaves = log_entries.leaf_hashes(session)
        common = min(len(leaves), len(signed))
        if [leaf_hash(entry) for entry in signed[:common]] != leaves[:common]:
            raise LogForked("the database's entries differ from the signed entries")
        return signed[common:]

    def start_new_log(self) -> None:
        """Archive the memory and start a log with a new name; an entry of the new log names the root of the old one.

        For an operator after a fork. Whoever kept a checkpoint can show that the old log ended here.
        """
        with self._locked():
            archive = self._folder / f"ended-{1 + len(list(self._folder.glob('ended-*')))}"
            archive.mkdir()
            for name in (MEMORY, ENTRIES):
                if (self._folder / name).exists():
                    (self._folder / name).rename(archive / name)
            previous = json.loads((archive / MEMORY).read_bytes())["root"]
        with self._db.transaction() as session:
            log_entries.append(session, "log.begun_anew", previous=previous)

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """The open file of entries, under a lock that one process at a time holds.

        A frozen process keeps its lock, so that it never writes into another process's work. So waiting has a limit.

        Raises:
            LogBusy: Another process holds the lock.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / ENTRIES
        path.touch()
        with path.open("r+b") as handle:
            deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise LogBusy(f"{path.name} is held by another process") from None
                    time.sleep(POLL_SECONDS)  # flock has no timeout
            yield handle

    def _memory(self) -> LogMemory:
        """What was remembered last; before the first checkpoint, the empty log."""
        path = self._folder / MEMORY
        if not path.exists():
            return {"note": "", "size": 0, "root": root([]).hex(), "bytes": 0}
        memory: LogMemory = json.loads(path.read_bytes())
        return memory

    def _remember(self, memory: LogMemory) -> None:
        write_atomically(self._folder / MEMORY, json.dumps(memory))
