"""Check an exported log with files alone: `unlearnd verify-log`.

1  the export's checkpoint is signed by a trusted key                      11 untrusted key, 30 log failure
2  its root is over exactly the entries that follow                        30 log failure
3  an older checkpoint, if there is one, is of the beginning of this log   30 log failure
4  every accepted request past its deadline has ended on record            50 incomplete
"""

import base64
import binascii
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from service.audit.canonical import NotCanonical, loads
from service.audit.checkpoint import PROOF_HEADER, Checkpoint, UnknownSigner, open_checkpoint
from service.audit.merkle import LogError, leaf_hash, root
from service.audit.verification import ExitCode, VerificationError, load_trust


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """What was found to hold.

    Attributes:
        checkpoint: The export's own.
        requests: How many requests it accepted.
    """

    checkpoint: Checkpoint
    requests: int


def verify_log(export: Path, trust: Path, older: Path | None = None, *, today: dt.date | None = None) -> VerifiedLog:
    """Run every step on an export.

    Args:
        export: JSON lines: `{"checkpoint": note}`, then `{"index", "entry"}` for each entry.
        trust: A `trust.json` obtained from the issuer by other means.
        older: A checkpoint that was kept, or an older export.
        today: For deadlines; by default today, UTC.

    Raises:
        VerificationError: Some step failed; its code and reason say which.
    """
    keys = load_trust(trust).log_keys
    if not keys:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, "trust.json names no key of a log")
    # 1  checkpoint
    note, entries = _read(export)
    checkpoint = _opened(note, keys)
    # 2  entries
    leaves = [leaf_hash(entry) for entry in entries]
    if checkpoint.size != len(leaves) or checkpoint.root != root(leaves):
        raise VerificationError(ExitCode.LOG_FAILURE, "the entries are not those that the checkpoint is of")
    # 3  consistency
    if older is not None:
        _check_older(_opened(_note_of(older), keys), checkpoint, leaves)
    # 4  promises
    accepted, open_ones = _promises(entries, today or dt.datetime.now(dt.UTC).date())
    if open_ones:
        reason = (
            f"{len(open_ones)} accepted requests are past their deadline and in no record, the first {open_ones[0]}"
        )
        raise VerificationError(ExitCode.INCOMPLETE, reason)
    return VerifiedLog(checkpoint, accepted)


def _read(export: Path) -> tuple[str, list[bytes]]:
    try:
        lines = [json.loads(line) for line in export.read_text().splitlines()]
        if [line["index"] for line in lines[1:]] != list(range(len(lines) - 1)):
            raise ValueError("entries out of order")
        return lines[0]["checkpoint"], [base64.b64decode(line["entry"], validate=True) for line in lines[1:]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, binascii.Error) as error:
        raise VerificationError(ExitCode.MALFORMED, f"{export.name} is not an exported log") from error


def _note_of(older: Path) -> str:
    """The checkpoint in a file that is one, an export, a certificate's proof, or a receipt."""
    try:
        content = older.read_text()
        if content.startswith(PROOF_HEADER):
            return content.partition("\n\n")[2]
        if not content.startswith("{"):
            return content
        found = json.loads(content.partition("\n")[0])
        if "checkpoint" in found:
            return str(found["checkpoint"])
        for name in ("receipt", "signed"):
            found = found.get(name, found)
        return str(loads(base64.b64decode(found["payload"]))["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(ExitCode.MALFORMED, f"{older.name} holds no checkpoint") from error


def _opened(note: str, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
    try:
        return open_checkpoint(note, keys)
    except UnknownSigner as error:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, str(error)) from error
    except LogError as error:
        raise VerificationError(ExitCode.LOG_FAILURE, str(error)) from error


def _check_older(older: Checkpoint, newer: Checkpoint, leaves: Sequence[bytes]) -> None:
    if older.origin != newer.origin:
        raise VerificationError(ExitCode.LOG_FAILURE, f"the older checkpoint is of the log {older.origin}")
    if older.size > newer.size:
        raise VerificationError(ExitCode.LOG_FAILURE, f"the log has become smaller: {older.size}, now {newer.size}")
    found = root(leaves[: older.size])
    if found != older.root:
        both = f"{base64.b64encode(older.root).decode()} and {base64.b64encode(found).decode()}"
        raise VerificationError(
            ExitCode.LOG_FAILURE, f"EQUIVOCATION: two logs of size {older.size}, with the roots {both}"
        )


def _promises(entries: Sequence[bytes], today: dt.date) -> tuple[int, list[str]]:
    """How many requests were accepted, and the refs of those past their deadline without a record."""
    found = _Promises({}, {}, {})
    for data in entries:
        try:
            found.enter(loads(data))
        except (NotCanonical, KeyError, TypeError, AttributeError) as error:
            raise VerificationError(ExitCode.MALFORMED, "an entry of the log is garbled") from error
    late = sorted(ref for ref, day in found.due.items() if day and dt.date.fromisoformat(day) < today)
    return len(found.due), late


@dataclass(frozen=True, slots=True)
class _Promises:
    """Accepted requests: the day that was promised, the day still open ("" once it is kept), each job's members."""

    promised: dict[str, str]
    due: dict[str, str]
    members: dict[str, list[str]]

    def enter(self, entry: dict[str, Any]) -> None:
        match entry["kind"]:
            case "request.accepted":
                self.promised[entry["ref"]] = self.due[entry["ref"]] = entry["due"]
            case "request.extended":
                self.promised[entry["ref"]] = entry["due"]
                self.due[entry["ref"]] = self.due[entry["ref"]] and entry["due"]
            case "request.retried":
                self.due[entry["ref"]] = self.promised[entry["ref"]]
            case "job.batched":
                self.members[entry["job"]] = entry["refs"]
            case "job.quarantined":  # its record, if there was one, was never published
                self.due.update({ref: self.promised[ref] for ref in self.members.get(entry["job"], ())})
            case "job.certified":
                self.due.update(dict.fromkeys(self.members.get(entry["job"], ()), ""))
            case "request.cancelled" | "request.nothing_found":
                self.due[entry["ref"]] = ""
            case "requests.rejected":
                self.due.update(dict.fromkeys(entry["refs"], ""))
