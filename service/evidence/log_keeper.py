"""The keeper of the log: signs checkpoints of what the database holds, and remembers them where no backup reaches.

The memory is in storage's ledger: the last checkpoint and every entry it covers. A log that does not begin with what
was signed before is not signed, so a rewritten or rolled-back database cannot put its own past on record; and a
database restored from an older backup gets the entries back that it has lost.

Signing reads all leaf hashes, 32 bytes an entry: 0.2 s for 100,000.
"""

import base64
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.audit.checkpoint import Checkpoint, Proof, open_checkpoint, sign_checkpoint
from service.audit.merkle import LogError, inclusion_proof, leaf_hash, root
from service.db import log_entries
from service.db.session import Database
from service.evidence.keyring import Keyring
from service.files import CachedFile, fsync, write_atomically

ENTRIES, MEMORY = "log.jsonl", "checkpoint.json"
PATIENCE, POLL_SECONDS = 10.0, 0.05


class LogForked(Exception):
    """The database's log does not begin with what was signed before."""


class LogBusy(Exception):
    """Another process holds the log's memory, and for too long: it may be frozen. Later is early enough."""


class LogKeeper:
    """Signs and remembers; control workers hold the key, everybody may read the memory."""

    def __init__(self, db: Database, folder: Path, keyring: Keyring, origin: str) -> None:
        """Keep the log of `db` in `folder`, under the name `origin`."""
        self._db, self._folder, self._keyring, self._origin = db, folder, keyring, origin
        self._note = CachedFile(folder / MEMORY, lambda data: str(json.loads(data)["note"]))

    @property
    def origin(self) -> str:
        """The log's name; one that had to be begun anew has a number behind it."""
        begun = 1 + len(list(self._folder.glob("ended-*")))
        return self._origin if begun == 1 else f"{self._origin}/{begun}"

    @property
    def key(self) -> Ed25519PrivateKey:
        """The log's key."""
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
        """Sign the log as it is now; returns its leaf hashes and the checkpoint over them.

        Raises:
            LogForked: It does not begin with what was signed before; nothing was signed.
        """
        with self._locked() as handle:
            memory = self._memory()
            with self._db.reading() as session:
                leaves = log_entries.leaf_hashes(session)
                size = memory["size"]
                if len(leaves) < size or root(leaves[:size]).hex() != memory["root"]:
                    raise LogForked(f"{len(leaves)} entries do not begin with the {size} that were signed")
                entries = log_entries.entries(session, size, len(leaves) - size)
            if len(leaves) == size and self._is_ours(memory["note"]):
                return leaves, str(memory["note"])
            handle.truncate(memory["bytes"])  # what a crash left behind the last checkpoint
            handle.seek(memory["bytes"])
            for entry in entries:
                handle.write(base64.b64encode(entry) + b"\n")
            handle.flush()
            fsync(Path(handle.name))
            checkpoint = Checkpoint(self.origin, len(leaves), root(leaves))
            note = sign_checkpoint(checkpoint, self.key)
            self._remember(note=note, size=len(leaves), root=checkpoint.root.hex(), bytes=handle.tell())
            return leaves, note

    def last_signed(self) -> dict[str, Any]:
        """Size and root (hex) of the last signed checkpoint; those of the empty log before the first."""
        memory = self._memory()
        return {"size": memory["size"], "root": memory["root"]}

    def _is_ours(self, note: str) -> bool:
        """Whether today's key signed a note; one by a key that was replaced since is signed again."""
        try:
            return bool(note) and bool(open_checkpoint(note, [self.key.public_key()]))
        except LogError:
            return False

    def prove(self, index: int) -> str:
        """A proof file for entry `index` against a checkpoint of now.

        Raises:
            LogForked: The log does not begin with what was signed before.
        """
        leaves, note = self.sign()
        with self._db.reading() as session:
            (entry,) = log_entries.entries(session, index, 1)
        return Proof(entry, index, inclusion_proof(leaves, index), note).dumps()

    def missing_entries(self) -> list[bytes]:
        """Entries that were signed and that the database does not have; empty unless it was restored from a backup.

        Raises:
            LogForked: What it has is not the beginning of what was signed.
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
            raise LogForked("the database's entries are not those that were signed")
        return signed[common:]

    def start_new_log(self) -> None:
        """Put the memory aside and begin a log of another name, whose first word is of the one before it.

        For an operator, after a fork: whoever kept a checkpoint can show that the old log ended here.
        """
        with self._locked():
            ended = self._folder / f"ended-{1 + len(list(self._folder.glob('ended-*')))}"
            ended.mkdir()
            for name in (MEMORY, ENTRIES):
                if (self._folder / name).exists():
                    (self._folder / name).rename(ended / name)
            previous = json.loads((ended / MEMORY).read_bytes())["root"]
        with self._db.transaction() as session:
            log_entries.append(session, "log.begun_anew", previous=previous)

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """The entries' file, held by one process at a time.

        A frozen process keeps it, so that it writes into nobody's; so nobody waits for ever.

        Raises:
            LogBusy: Another process holds it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / ENTRIES
        path.touch()
        with path.open("r+b") as handle:
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise LogBusy(f"{path.name} is held by another process") from None
                    time.sleep(POLL_SECONDS)  # the system has no lock of this kind with a time-out
            yield handle

    def _memory(self) -> dict[str, Any]:
        path = self._folder / MEMORY
        if not path.exists():
            return {"note": "", "size": 0, "root": root([]).hex(), "bytes": 0}
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def _remember(self, **memory: Any) -> None:
        write_atomically(self._folder / MEMORY, json.dumps(memory))
