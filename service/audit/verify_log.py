"""Checks an exported log offline: `unlearnd verify-log`.

1  a trusted key signed the export's checkpoint                             11 untrusted key, 30 log failure
2  the checkpoint's root covers exactly the exported entries                30 log failure
3  the log begins with the log of an older checkpoint, if one is given, and
   with that of a checkpoint that each given witness cosigned lately        30 log failure
4  the log shows an end for every accepted request past its deadline        50 incomplete

An entry that cannot be read is part of the tree like any other. It says nothing in step 4, and is reported.
"""

import base64
import binascii
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from service.audit.canonical import loads
from service.audit.checkpoint import PROOF_HEADER, Checkpoint, UnknownSigner, open_checkpoint
from service.audit.cosignature import WitnessKey, cosigned_at
from service.audit.log_deadlines import Deadlines
from service.audit.merkle import LogError, leaf_hash, root
from service.audit.trust import Trust
from service.audit.verification import ExitCode, VerificationError, load_given_trust

WITNESSED_WITHIN = dt.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Log:
    """An exported log whose entries are those of its signed checkpoint.

    Attributes:
        checkpoint: The export's checkpoint.
        entries: The canonical bytes of each entry.
        leaves: The hash of each entry.
    """

    checkpoint: Checkpoint
    entries: Sequence[bytes]
    leaves: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Promises:
    """What the entries of a log say of the accepted requests.

    Attributes:
        requests: How many requests the log says were accepted.
        unreadable: The indices of the entries that are not canonical JSON, or lack what their kind has.
        overdue: A sentence about requests that are past their deadline and have no end; None if there are none.
    """

    requests: int
    unreadable: list[int]
    overdue: str | None


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """A log that passed every step.

    Attributes:
        checkpoint: The export's checkpoint.
        requests: How many requests the log says were accepted.
        unreadable: The indices of the entries that are not canonical JSON, or lack what their kind has.
        witnessed: What the witnesses have cosigned; None if none was asked for.
    """

    checkpoint: Checkpoint
    requests: int
    unreadable: list[int]
    witnessed: "Witnessed | None" = None


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What all given witnesses have cosigned.

    Attributes:
        size: The entries of the log then. Those that follow are vouched for by the issuer alone.
        at: When the first of them did so.
    """

    size: int
    at: dt.datetime


def verify_log(
    export: Path,
    trust: Path,
    older: Path | None = None,
    *,
    witnesses: Sequence[str] = (),
    witnessed_within: dt.timedelta = WITNESSED_WITHIN,
    today: dt.date | None = None,
) -> VerifiedLog:
    """Run every step on an export.

    Args:
        export: JSON lines: `{"checkpoint": note}`, then `{"index", "entry"}` for each entry.
        trust: A `trust.json` that the issuer gave out in another way than the export.
        older: A file with an older checkpoint: a kept checkpoint, an older export, a proof, or a receipt.
        witnesses: Verifier keys (C2SP signed-note) of witnesses that the auditor trusts.
        witnessed_within: How old their cosignatures may be: what follows them is vouched for by the issuer alone.
        today: The day to which deadlines are compared; by default today, UTC.

    Raises:
        VerificationError: A step failed; the code and the reason say which.
    """
    trusted = load_given_trust(trust)
    log = open_log(export, trusted)
    # 3  consistency
    if older is not None:
        check_older(_open_note(_read_note(older), trusted.log_keys), log)
    witnessed = check_witnesses(export, witnesses, trusted, log, witnessed_within) if witnesses else None
    # 4  promises
    promises = read_promises(log, today)
    if promises.overdue:
        raise VerificationError(ExitCode.INCOMPLETE, promises.overdue)
    return VerifiedLog(log.checkpoint, promises.requests, promises.unreadable, witnessed)


def check_witnesses(export: Path, witnesses: Sequence[str], trust: Trust, log: Log, within: dt.timedelta) -> Witnessed:
    """Check that each witness has lately cosigned a checkpoint of the export, and that the log begins with its log.

    Raises:
        VerificationError: A key is none, or there is no such checkpoint of one of them.
    """
    notes, checkpoints, times = _read_witnessed(export), list[Checkpoint](), list[dt.datetime]()
    for vkey in witnesses:
        try:
            witness = WitnessKey.parse(vkey)
            note = next((note for note in notes if witness.line_in(note.partition("\n\n")[2])), None)
            at = cosigned_at(note, witness) if note is not None else None
        except LogError as error:
            raise VerificationError(ExitCode.LOG_FAILURE, str(error)) from error
        if note is None or at is None:
            raise VerificationError(ExitCode.LOG_FAILURE, f"the export has no checkpoint that {witness.name} cosigned")
        if at < dt.datetime.now(dt.UTC) - within:
            reason = f"{witness.name} cosigned last at {at:%Y-%m-%d %H:%M} UTC; see --witnessed-within"
            raise VerificationError(ExitCode.LOG_FAILURE, reason)
        checkpoint = _open_note(note, trust.log_keys)
        check_older(checkpoint, log)
        checkpoints.append(checkpoint)
        times.append(at)
    return Witnessed(min(checkpoint.size for checkpoint in checkpoints), min(times))


def open_log(export: Path, trust: Trust) -> Log:
    """Run the steps 1 and 2 on an export.

    Raises:
        VerificationError: A step failed; the code and the reason say which.
    """
    if not trust.log_keys:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, "trust.json names no log key")
    # 1  checkpoint
    note, entries = _read_export(export)
    checkpoint = _open_note(note, trust.log_keys)
    # 2  entries
    leaves = [leaf_hash(entry) for entry in entries]
    if checkpoint.size != len(leaves) or checkpoint.root != root(leaves):
        raise VerificationError(ExitCode.LOG_FAILURE, "the entries do not match the checkpoint")
    return Log(checkpoint, entries, leaves)


def read_promises(log: Log, today: dt.date | None = None) -> Promises:
    """What the log says of the accepted requests on a day, by default today, UTC."""
    deadlines = Deadlines({}, {}, {})
    unreadable = [index for index, entry in enumerate(log.entries) if not deadlines.read(entry)]
    refs = deadlines.overdue(today or dt.datetime.now(dt.UTC).date())
    ending = "accepted requests are past their deadline and have no end in the log; the first is"
    overdue = f"{len(refs)} {ending} {refs[0]}" if refs else None
    return Promises(len(deadlines.promised), unreadable, overdue)


def _read_export(export: Path) -> tuple[str, list[bytes]]:
    """The checkpoint's note and the entries of an export."""
    try:
        lines = [json.loads(line) for line in export.read_text().splitlines()]
        if [line["index"] for line in lines[1:]] != list(range(len(lines) - 1)):
            raise ValueError("entries out of order")
        return lines[0]["checkpoint"], [base64.b64decode(line["entry"], validate=True) for line in lines[1:]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, binascii.Error) as error:
        raise VerificationError(ExitCode.MALFORMED, f"{export.name} is not an exported log") from error


def _read_witnessed(export: Path) -> list[str]:
    """The notes of an export that witnesses have cosigned; none in an export of an earlier release."""
    try:
        notes = json.loads(export.read_text().partition("\n")[0]).get("witnessed", [])
        return [str(note) for note in notes]
    except (OSError, ValueError, AttributeError, TypeError) as error:
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


def check_older(older: Checkpoint, log: Log) -> None:
    """Check that a log begins with the log of an older checkpoint.

    Raises:
        VerificationError: It is smaller, another one, or has another past.
    """
    newer = log.checkpoint
    if older.origin != newer.origin:
        raise VerificationError(ExitCode.LOG_FAILURE, f"the older checkpoint belongs to the log {older.origin}")
    if older.size > newer.size:
        raise VerificationError(ExitCode.LOG_FAILURE, f"the log has become smaller: {older.size}, now {newer.size}")
    root_now = root(log.leaves[: older.size])
    if root_now != older.root:
        roots = f"{base64.b64encode(older.root).decode()} and {base64.b64encode(root_now).decode()}"
        reason = f"EQUIVOCATION: two logs of size {older.size} have the roots {roots}"
        raise VerificationError(ExitCode.LOG_FAILURE, reason)
