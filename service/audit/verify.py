"""Check a release folder with files alone: no database, no network, no trust in whoever served it.

    1  the certificate is there and readable           50 incomplete, 12 malformed
    2  a trusted key signed it                         10 bad signature, 11 untrusted key
    3  it is a canonical statement of our kind         12 malformed
    4  the folder is exactly the files it lists        20 artefact mismatch
    5  its results add up to its overall verdict       40 policy failure
    6  its wording claims no more than the tests       40 policy failure
    7  the log has it, says a trusted checkpoint       30 log failure, 50 incomplete

The first step that fails ends it. An empty list is a failure, never a pass.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import IntEnum
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import VerificationError as SignatureError

from service.audit.canonical import NotCanonical, loads
from service.audit.certificate import FEWEST, NOT_MEMORISED, PREDICATE_TYPE, STATEMENT_TYPE, SUPPRESSED
from service.audit.log import Checkpoint, LogError, Proof
from service.audit.manifest import NotPlain, file_entry, list_paths
from service.audit.signing import log_keys, open_envelope, trusted_keys
from service.audit.wording import problem_in

CERTIFICATE = "certificate.dsse.json"
PROOF = "certificate.tlog-proof"
UNBOUND = {CERTIFICATE, PROOF}  # a certificate cannot list its own digest, nor that of what was made after it


class Code(IntEnum):
    """Exit codes of `unlearnd verify`."""

    VALID = 0
    BAD_SIGNATURE = 10
    UNTRUSTED_KEY = 11
    MALFORMED = 12
    ARTEFACT_MISMATCH = 20
    LOG_FAILURE = 30
    POLICY_FAILURE = 40
    INCOMPLETE = 50


class VerificationError(Exception):
    """A step failed; carries the exit code and the reason."""

    def __init__(self, code: Code, reason: str) -> None:
        """Name the code and say why."""
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to hold.

    Attributes:
        statement: The statement, parsed.
        keyids: The trusted keys whose signature holds.
        own_trust: The trusted keys came with the release, so this shows integrity, not origin.
        checkpoint: The log's checkpoint in which it was found; keep it, a later one must be consistent with it.
    """

    statement: dict[str, Any]
    keyids: list[str]
    own_trust: bool
    checkpoint: Checkpoint


def verify(folder: Path, trust: Path | None = None) -> Verified:
    """Run every step on a release folder.

    Args:
        folder: The release folder.
        trust: A `trust.json` obtained from the issuer by other means; None takes the folder's own.

    Raises:
        VerificationError: Some step failed; its code and reason say which.
    """
    try:
        return _verify(folder, trust)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise VerificationError(
            Code.MALFORMED, f"garbled where it was not expected ({type(error).__name__})"
        ) from error


def _verify(folder: Path, trust: Path | None) -> Verified:
    # 1  the certificate
    certificate = folder / CERTIFICATE
    if not certificate.is_file() or certificate.is_symlink():
        raise VerificationError(Code.INCOMPLETE, f"{CERTIFICATE} is missing")
    envelope = certificate.read_bytes()
    # 2  signature
    keyids = _signers(envelope)
    trusted = read_trust(trust or folder / "trust.json")
    payload = _check_signature(envelope, keyids, trusted)
    # 3  statement
    statement = _read_statement(payload)
    # 4  files
    _check_files(folder, statement["subject"])
    # 5  policy
    for reason in policy_problems(statement["predicate"]):
        raise VerificationError(Code.POLICY_FAILURE, reason)
    # 6  wording
    wrong = problem_in(statement["predicate"])
    if wrong:
        raise VerificationError(Code.POLICY_FAILURE, wrong)
    # 7  log
    checkpoint = _check_log(folder / PROOF, envelope, trusted)
    return Verified(statement, keyids, trust is None, checkpoint)


def _signers(envelope: bytes) -> list[str]:
    """The keyids an envelope claims, each once."""
    try:
        claimed = [s["keyid"] for s in json.loads(envelope)["signatures"]]
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(Code.MALFORMED, f"{CERTIFICATE} is not a DSSE envelope") from error
    if not claimed or len(set(claimed)) != len(claimed):
        raise VerificationError(Code.BAD_SIGNATURE, "no signature, or one key twice")
    return claimed


def read_trust(path: Path) -> dict[str, Any]:
    """A `trust.json` without keys that have lapsed.

    Raises:
        VerificationError: Missing, unreadable or empty.
    """
    try:
        trust: dict[str, Any] = json.loads(path.read_bytes())
        if not trust["keys"]:
            raise ValueError("no keys")
        now = dt.datetime.now(dt.UTC)
        current = [k for k in trust["keys"] if not _lapsed(k, now)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationError(Code.INCOMPLETE, "trust.json is missing or unreadable") from error
    return {**trust, "keys": current}


def _lapsed(key: dict[str, Any], now: dt.datetime) -> bool:
    until = key.get("valid_until")
    return bool(key.get("revoked_at")) or (until is not None and dt.datetime.fromisoformat(until) < now)


def _check_signature(envelope: bytes, keyids: list[str], trust: dict[str, Any]) -> bytes:
    """The payload, if a trusted key signed it."""
    try:
        keys = trusted_keys({"keys": [k for k in trust["keys"] if k.get("role") == "certificate"]})
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(Code.MALFORMED, "trust.json holds something that is not a key") from error
    if not set(keyids) <= set(keys):
        raise VerificationError(Code.UNTRUSTED_KEY, "signed by a key that is unknown, expired or revoked")
    try:
        return open_envelope(envelope, keys)
    except SignatureError as error:
        raise VerificationError(Code.BAD_SIGNATURE, "the signature does not match the certificate") from error
    except ValueError as error:
        raise VerificationError(Code.MALFORMED, f"{CERTIFICATE} is not a DSSE envelope") from error


def _read_statement(payload: bytes) -> dict[str, Any]:
    try:
        statement = loads(payload)
    except NotCanonical as error:
        raise VerificationError(Code.MALFORMED, f"the payload is malformed: {error}") from error
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise VerificationError(Code.MALFORMED, "the payload is not an in-toto statement")
    if statement.get("predicateType") != PREDICATE_TYPE or not isinstance(statement.get("predicate"), dict):
        raise VerificationError(Code.MALFORMED, "the statement is of another kind")
    return statement


def _check_files(folder: Path, subject: Any) -> None:  # unchecked JSON
    """Exactly the listed files are there, byte for byte."""
    try:
        listed = {s["name"]: s["digest"]["sha256"] for s in subject}
        if not listed or len(listed) != len(subject):
            raise ValueError("no subject, or one twice")
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(Code.MALFORMED, "the statement lists no files") from error
    try:
        present = set(list_paths(folder)) - UNBOUND
    except NotPlain as error:
        raise VerificationError(Code.ARTEFACT_MISMATCH, str(error)) from error
    for path in sorted(present ^ set(listed)):
        what = "is missing" if path in listed else "is not in the certificate"
        raise VerificationError(Code.ARTEFACT_MISMATCH, f"{path} {what}")
    for path in sorted(listed):
        if file_entry(folder, path)["sha256"] != listed[path]:
            raise VerificationError(Code.ARTEFACT_MISMATCH, f"{path} differs from what was certified")


def _check_log(path: Path, envelope: bytes, trust: dict[str, Any]) -> Checkpoint:
    """The checkpoint in whose tree the certificate's entry is."""
    if not path.is_file():
        raise VerificationError(Code.INCOMPLETE, f"{path.name} is missing")
    try:
        proof = Proof.loads(path.read_text())
        checkpoint = proof.check(log_keys(trust))
        entry = loads(proof.entry)
    except (LogError, NotCanonical, UnicodeDecodeError) as error:
        raise VerificationError(Code.LOG_FAILURE, f"{path.name}: {error}") from error
    digest = hashlib.sha256(envelope).hexdigest()
    if (entry.get("kind"), entry.get("certificate"), entry.get("overall")) != ("job.certified", digest, "PASS"):
        raise VerificationError(Code.LOG_FAILURE, "the log's entry is of another certificate")
    return checkpoint


def policy_problems(predicate: dict[str, Any]) -> Iterator[str]:
    """What keeps a predicate from being a passed, published release; `overall` is recomputed, not believed."""
    try:
        if predicate["artefacts"]["published"] is not True:
            yield "the record is of a run that was not published"
        if predicate["lineage"]["version"] != predicate["lineage"]["parent_version"] + 1:
            yield "the version does not follow its parent"
        if not predicate["verification"]["thresholds"]:
            yield "the record has no thresholds"
        if not predicate["requests"]:
            yield "the record names no request"
        yield from (f"request {r['ref']} did not pass" for r in predicate["requests"] if r["verdict"] != "PASS")
        trained = sum(r["reason"] != NOT_MEMORISED for r in predicate["requests"])
        yield from _limits_missed(predicate["verification"], few=trained < FEWEST)
        if predicate["overall"] != "PASS":
            yield "the record's overall verdict is not PASS"
    except (KeyError, TypeError, InvalidOperation, ValueError) as error:
        yield f"the record lacks or garbles a result ({type(error).__name__})"


def _limits_missed(verification: dict[str, Any], *, few: bool) -> Iterator[str]:
    """Means over their limits; those of few requests must not be told, and each request's own verdict stands alone."""
    after, limits, utility = verification["after"], verification["limits"], verification["utility"]
    for name in ("el", "ma"):
        if few:
            if not after[name] == verification["before"][name] == SUPPRESSED:
                yield f"mean {name.upper()} is told, though it is of fewer than {FEWEST} requests"
        elif not Decimal(after[name]) <= Decimal(limits[name]):
            yield f"mean {name.upper()} {after[name]} is over the held-out mean {limits[name]}"
    if not Decimal(utility["heldout_ratio"]) <= Decimal(utility["max_ratio"]):
        yield f"held-out perplexity ratio {utility['heldout_ratio']} is over {utility['max_ratio']}"
    yield from (f"earlier request {ref} came back" for ref in verification["earlier"]["regressed"])
