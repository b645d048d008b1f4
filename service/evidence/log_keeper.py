"""The keeper of the log: signs checkpoints of the database's log and remembers them outside the database.

The memory is in the ledger of storage, which no database backup restores. It holds the last checkpoint and
the tiles of the entries that the checkpoint covers, as a static copy of the log that any mirror can serve (C2SP
tlog-tiles). The keeper signs a log only if it begins with the entries that were signed before, so a rewritten or
rolled-back database gets no signature. A database that was restored from an older backup gets its lost entries back
from the memory.

Signing reads the new entries, and of the signed ones those of two tiles: the last, which no log has that lost entries
and went on, and one by chance. The doctor compares all. Nothing else grows with the log.
"""

import random
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from service.audit.checkpoint import Checkpoint, Proof, open_checkpoint, read_checkpoint, sign_checkpoint
from service.audit.log_entry import LogState
from service.audit.merkle import HASH_BYTES, LogError, inclusion_proof, leaf_hash, root
from service.audit.tiles import (
    ENTRIES,
    WIDTH,
    TiledTree,
    join_entries,
    parse_tile_path,
    split_entries,
    tile_path,
)
from service.db import log_entries, log_home
from service.db.session import Database
from service.evidence.keyring import Keyring
from service.evidence.log_memory import SIGN_ATTEMPTS, LogDamaged, LogMemory, Overtaken

AT_ONCE = 16 * WIDTH  # entries in memory


class LogForked(Exception):
    """The database's log does not begin with the entries that were signed before."""


class LogKeeper:
    """Signs checkpoints and remembers them; control workers hold the key, every process may read the memory."""

    def __init__(self, db: Database, memory: LogMemory, keyring: Keyring, origin: str) -> None:
        """Keep the log of `db`, with its memory; `origin` is the name of the log."""
        self._db, self._memory, self._keyring, self._origin = db, memory, keyring, origin

    @property
    def origin(self) -> str:
        """The name of the log; a log that replaces an ended one has a number at its end."""
        number = 1 + self._memory.ended()
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
        return self._memory.note()

    def known_checkpoint(self) -> str | None:
        """The last signed checkpoint, or one that was the last a moment ago; None if none is known."""
        return self._memory.known_note()

    def tree(self) -> TiledTree:
        """The tree that the last checkpoint covers."""
        return TiledTree(self._signed().size, self._memory.read_tile)

    def sign(self) -> str:
        """Sign a checkpoint of the current log; returns its note.

        Raises:
            LogForked: The log does not begin with the entries that were signed before; nothing was signed.
            LogDamaged: The tiles do not give the root that was signed; nothing was signed.
            LogBusy: Another process holds the memory.
        """
        for _ in range(SIGN_ATTEMPTS - 1):
            with suppress(Overtaken):
                return self._sign()
        return self._sign()

    def _sign(self) -> str:
        with self._memory.held(), self._db.reading() as session:
            note = self.checkpoint()
            signed, size = self._state_in(note), log_entries.size(session)
            if TiledTree(signed.size, self._memory.read_tile).root != signed.root:
                raise LogDamaged("the tiles in storage do not give the root that was signed")
            self._check_beginning(session, signed.size, size)
            if note is not None and size == signed.size and self._is_ours(note):
                return note
            for start in range(signed.size, size, AT_ONCE):
                entries = log_entries.entries(session, start, min(AT_ONCE, size - start))
                self._memory.extend(start, entries)
            checkpoint = Checkpoint(self.origin, size, TiledTree(size, self._memory.read_tile).root)
            note = sign_checkpoint(checkpoint, self.key)
            self._memory.write_note(note)
            return note

    def last_signed(self) -> LogState:
        """The state of the log at the last signed checkpoint; before the first one, that of the empty log."""
        signed = self._signed()
        return {"size": signed.size, "root": signed.root.hex()}

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
        note = self.sign()
        tree = TiledTree(read_checkpoint(note).size, self._memory.read_tile)
        (entry,) = self._entries(index, index + 1)
        return Proof(entry, index, inclusion_proof(tree.subtree, tree.size, index), note).dumps()

    def missing_entries(self, *, compare_all: bool = False) -> tuple[int, list[bytes]]:
        """The number of entries that the database has, and the signed ones that it lacks: none, unless it lost some.

        Args:
            compare_all: Compare every entry of the database with what was signed; this takes 1 s for 100,000.

        Raises:
            LogDamaged: A tile in storage is missing or cut off.
            LogForked: The entries of the database differ from the signed ones.
            LogBusy: Another process holds the memory.
        """
        if self.checkpoint() is None:
            with self._db.reading() as session:
                return log_entries.size(session), []
        with self._memory.held(), self._db.reading() as session:
            signed, size = self._signed().size, log_entries.size(session)
            if size >= signed and not compare_all:
                self._check_beginning(session, signed, size)
                return size, []
            common = min(size, signed)
            for start in range(0, common, AT_ONCE):
                self._compare(session, start, min(common, start + AT_ONCE))
            return size, self._entries(size, signed)

    def tile(self, path: str) -> bytes | None:
        """The content of the tile at a path (C2SP tlog-tiles); None if the last checkpoint covers no such tile."""
        try:
            level, number, width = parse_tile_path(path)
        except ValueError:
            return None
        covered = self.tree().width(level, number)
        if not 0 < width <= covered:
            return None
        data = self._memory.read_tile(level, number, covered)
        if level == ENTRIES:
            return join_entries(split_entries(data, width))
        return data[: HASH_BYTES * width]

    def _check_beginning(self, session: Session, signed: int, size: int) -> None:
        """Compare the last signed tile of the database's entries, and another by chance, with what was signed.

        Raises:
            LogForked: They differ, or the database has fewer entries.
        """
        if size < signed:
            raise LogForked(f"the {size} entries do not begin with the {signed} signed ones")
        last = max(signed - 1, 0) // WIDTH
        for number in sorted({last, random.randrange(last + 1)}):
            self._compare(session, number * WIDTH, min(signed, (number + 1) * WIDTH))

    def _compare(self, session: Session, start: int, end: int) -> None:
        """Compare entries of the database with the signed ones.

        Raises:
            LogForked: They differ.
            LogDamaged: The tiles are not those that were signed.
        """
        rows, tree = log_entries.rows(session, start, end - start), self.tree()
        expected = tree.leaves(start, end)
        if not all(tree.is_intact(number) for number in range(start // WIDTH, -(-end // WIDTH))):
            raise LogDamaged(f"the tiles of the entries {start} to {end - 1} are not those that were signed")
        if [hashed for _, hashed in rows] != expected or [leaf_hash(entry) for entry, _ in rows] != expected:
            raise LogForked(f"the entries {start} to {end - 1} of the database differ from the signed ones")

    def _entries(self, start: int, end: int) -> list[bytes]:
        """Signed entries."""
        entries, tree = [], self.tree()
        for number in range(start // WIDTH, -(-end // WIDTH)):
            width = tree.width(ENTRIES, number)
            try:
                entries += split_entries(self._memory.read_tile(ENTRIES, number, width), width)
            except ValueError as error:
                raise LogDamaged(f"{tile_path(ENTRIES, number, width)} is cut off") from error
        return entries[start % WIDTH :][: end - start]

    def start_new_log(self) -> None:
        """Archive the memory and start a log with a new name; an entry of the new log names the root of the old one.

        For an operator after a fork. Whoever kept a checkpoint can show that the old log ended here.
        """
        with self._memory.held():
            previous = self._signed().root.hex()
            self._memory.end()
        with self._db.transaction() as session:
            log_home.settle(session, [], log_entries.size(session))
            log_entries.append(session, "log.begun_anew", previous=previous)

    def _signed(self) -> Checkpoint:
        """The last signed checkpoint; before the first, that of the empty log."""
        return self._state_in(self.checkpoint())

    def _state_in(self, note: str | None) -> Checkpoint:
        """What a note says; without one, the state of the empty log."""
        return read_checkpoint(note) if note is not None else Checkpoint(self.origin, 0, root([]))
