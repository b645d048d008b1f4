"""Checks an exported log offline: `unlearnd verify-log`.

1  a trusted key signed the export's checkpoint                             11 untrusted key, 30 log failure
2  the checkpoint's root covers exactly the exported entries                30 log failure
3  the log begins with the log of an older checkpoint, if one is given      30 log failure
4  the log shows an end for every accepted request past its deadline        50 incomplete

An entry that cannot be read is part of the tree like any other. It says nothing in step 4, and is reported.
"""

import base64
import binascii
import datetime as dt
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from service.audit.canonical import NotCanonical, loads
from service.audit.checkpoint import PROOF_HEADER, Checkpoint, UnknownSigner, open_checkpoint
from service.audit.log_entry import LogEntry
from service.audit.merkle import LogError, leaf_hash, root
from service.audit.verification import ExitCode, VerificationError, load_trust


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """A log that passed every step.

    Attributes:
        checkpoint: The export's checkpoint.
        requests: How many requests the log says were accepted.
        unreadable: The indices of the entries that are not canonical JSON, or lack what their kind has.
    """

    checkpoint: Checkpoint
    requests: int
    unreadable: list[int]


def verify_log(export: Path, trust: Path, older: Path | None = None, *, today: dt.date | None = None) -> VerifiedLog:
    """Run every step on an export.

    Args:
        export: JSON lines: `{"checkpoint": note}`, then `{"index", "entry"}` for each entry.
        trust: A `trust.json` that the issuer gave out in another way than the export.
        older: A file with an older checkpoint: a kept checkpoint, an older export, a proof, or a receipt.
        today: The day to which deadlines are compared; by default today, UTC.

    Raises:
        VerificationError: A step failed; the code and the reason say which.
    """
    keys = load_trust(trust).log_keys
    if not keys:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, "trust.json names no log key")
    # 1  checkpoint
    note, entries = _read_export(export)
    checkpoint = _open_note(note, keys)
    # 2  entries
    leaves = [leaf_hash(entry) for entry in entries]
    if checkpoint.size != len(leaves) or checkpoint.root != root(leaves):
        raise VerificationError(ExitCode.LOG_FAILURE, "the entries do not match the checkpoint")
    # 3  consistency
    if older is not None:
        _check_older(_open_note(_read_note(older), keys), checkpoint, leaves)
    # 4  promises
    deadlines = _Deadlines({}, {}, {})
    unreadable = [index for index, entry in enumerate(entries) if not deadlines.read(entry)]
    overdue = deadlines.overdue(today or dt.datetime.now(dt.UTC).date())
    if overdue:
        count, first = len(overdue), overdue[0]
        reason = f"{count} accepted requests are past their deadline and have no end in the log; the first is {first}"
        raise VerificationError(ExitCode.INCOMPLETE, reason)
    return VerifiedLog(checkpoint, len(deadlines.promised), unreadable)


def _read_export(export: Path) -> tuple[str, list[bytes]]:
    """The checkpoint's note and the entries of an export."""
    try:
        lines = [json.loads(line) for line in export.read_text().splitlines()]
        if [line["index"] for line in lines[1:]] != list(range(len(lines) - 1)):
            raise ValueError("entries out of order")
        return lines[0]["checkpoint"], [base64.b64decode(line["entry"], validate=True) for line in lines[1:]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, binascii.Error) as error:
        raise VerificationError(ExitCode.MALFORMED, f"{export.name} is not an exported log") from error


def _read_note(older: Path) -> str:
    """The checkpoint's note in a file: a bare checkpoint, an export, a certificate's proof, or a receipt."""
    try:
        content = older.read_text()
        if content.startswith(PROOF_HEADER):
            return content.partition("\n\n")[2]
        if not content.startswith("{"):
            return content
        members = json.loads(content.partition("\n")[0])
        if "checkpoint" in members:
            return str(members["checkpoint"])
        for name in ("receipt", "signed"):
            members = members.get(name, members)
        return str(loads(base64.b64decode(members["payload"]))["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(ExitCode.MALFORMED, f"{older.name} holds no checkpoint") from error


def _open_note(note: str, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
    """The checkpoint of a signed note, with the exit codes of the command."""
    try:
        return open_checkpoint(note, keys)
    except UnknownSigner as error:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, str(error)) from error
    except LogError as error:
        raise VerificationError(ExitCode.LOG_FAILURE, str(error)) from error


def _check_older(older: Checkpoint, newer: Checkpoint, leaves: Sequence[bytes]) -> None:
    """The log of the newer checkpoint begins with the log of the older one."""
    if older.origin != newer.origin:
        raise VerificationError(ExitCode.LOG_FAILURE, f"the older checkpoint belongs to the log {older.origin}")
    if older.size > newer.size:
        raise VerificationError(ExitCode.LOG_FAILURE, f"the log has become smaller: {older.size}, now {newer.size}")
    root_now = root(leaves[: older.size])
    if root_now != older.root:
        roots = f"{base64.b64encode(older.root).decode()} and {base64.b64encode(root_now).decode()}"
        reason = f"EQUIVOCATION: two logs of size {older.size} have the roots {roots}"
        raise VerificationError(ExitCode.LOG_FAILURE, reason)


@dataclass(frozen=True, slots=True)
class _Deadlines:
    """The deadlines of the accepted requests, as the entries of the log set them.

    Attributes:
        promised: ref -> the last promised day.
        open_until: ref -> the promised day while the request is open, "" once it has ended.
        members: job -> the refs of its requests.
    """

    promised: dict[str, str]
    open_until: dict[str, str]
    members: dict[str, list[str]]

    def read(self, data: bytes) -> bool:
        """Apply the next entry of the log; false, and nothing is applied, if it cannot be read."""
        try:
            self._add(loads(data))
        except (NotCanonical, KeyError, TypeError, AttributeError, ValueError):
            return False
        return True

    def overdue(self, today: dt.date) -> list[str]:
        """The refs of requests that are past their deadline and have not ended, sorted."""
        return sorted(ref for ref, day in self.open_until.items() if day and dt.date.fromisoformat(day) < today)

    def _add(self, entry: LogEntry) -> None:
        """Apply an entry. Each kind reads all that it needs before it changes anything.

        Raises:
            KeyError: The entry lacks a member, or names a request that the log does not have.
            TypeError: A member has another type.
            AttributeError: The entry is not an object.
            ValueError: A day is not a day.
        """
        match entry["kind"]:
            case "request.accepted":
                ref, due = _text(entry["ref"]), _day(entry["due"])
                self.promised[ref] = self.open_until[ref] = due
            case "request.extended":
                ref, due, until = entry["ref"], _day(entry["due"]), self.open_until[entry["ref"]]
                self.promised[ref], self.open_until[ref] = due, until and due
            case "request.retried":
                self.open_until[entry["ref"]] = self.promised[entry["ref"]]
            case "version.withdrawn":
                self._reopen(entry.get("reopened", ()))
            case "requests.reopened":  # those of a withdrawal that its entry has no room for
                self._reopen(entry["refs"])
            case "request.cancelled" | "request.nothing_found" | "request.closed":
                self.open_until[_text(entry["ref"])] = ""
            case "requests.rejected":
                self._reject(entry.get("job"), {_text(ref) for ref in entry["refs"]})
            case kind if _text(kind).startswith("job."):
                self._add_of_job(entry)

    def _add_of_job(self, entry: LogEntry) -> None:
        """Apply an entry about a job. It raises what `_add` raises."""
        match entry["kind"]:
            case "job.batched":
                self.members[_text(entry["job"])] = [_text(ref) for ref in entry["refs"]]
            case "job.quarantined":  # the job's certificate, if it has one, was never published
                refs = self.members.get(entry["job"], ())
                self.open_until.update({ref: self.promised[ref] for ref in refs if ref in self.promised})
            case "job.certified":
                self.open_until.update(dict.fromkeys(self.members.get(entry["job"], ()), ""))
                self._reopen(entry.get("failed", ()))
            case "job.split":
                self._reopen(entry["reopened"])

    def _reject(self, job: str | None, refs: set[str]) -> None:
        """Requests have ended, and are no longer members of their job: its quarantine does not open them again."""
        if job in self.members:
            self.members[job] = [ref for ref in self.members[job] if ref not in refs]
        self.open_until.update(dict.fromkeys(refs, ""))

    def _reopen(self, refs: Iterable[str]) -> None:
        """Requests are open again until the promised day."""
        self.open_until.update({ref: self.promised[ref] for ref in refs})


def _text(value: object) -> str:
    """The value, which is a string.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _day(value: object) -> str:
    """The value, which is a day.

    Raises:
        TypeError: It is not a string.
        ValueError: It is another string.
    """
    return dt.date.fromisoformat(_text(value)).isoformat()
