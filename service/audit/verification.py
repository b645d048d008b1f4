"""Opens signed files, with the exit codes of `unlearnd verify`, `verify-log` and `verify-record`."""

import datetime as dt
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import cast

from service.audit.canonical import NotCanonical, loads
from service.audit.certificate import PREDICATE_TYPE, STATEMENT_TYPE
from service.audit.dsse import IN_TOTO, NotAnEnvelope
from service.audit.predicate import Statement
from service.audit.schema import KNOWN
from service.audit.trust import BadSignature, Key, Trust, Untrusted, open_envelope, parse_trust

CERTIFICATE = "certificate.dsse.json"
GET_CURRENT = "get the current one from the issuer"


class ExitCode(IntEnum):
    """The exit codes of the verifying commands."""

    VALID = 0
    BAD_SIGNATURE = 10
    UNTRUSTED_KEY = 11
    MALFORMED = 12
    ARTEFACT_MISMATCH = 20
    LOG_FAILURE = 30
    POLICY_FAILURE = 40
    INCOMPLETE = 50
    NOT_IN_REQUEST = 60


class VerificationError(Exception):
    """A step of a verification failed; carries the exit code and the reason."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        """Fail with this exit code and reason."""
        super().__init__(reason)
        self.code, self.reason = code, reason


def load_trust(path: Path) -> Trust:
    """Read a `trust.json` that came with a release: it shows integrity, also after its expiry.

    Raises:
        VerificationError: The file is missing, unreadable, or not a `trust.json`.
    """
    try:
        return parse_trust(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(ExitCode.INCOMPLETE, "trust.json is missing or unreadable") from error


def load_given_trust(path: Path) -> Trust:
    """Read a `trust.json` that somebody gives, to show origin: it must not have expired.

    Raises:
        VerificationError: The file is no `trust.json`, has expired, or does not say when it expires.
    """
    trust = load_trust(path)
    if trust.expires is None:
        reason = f"the given trust.json does not say when it expires: {GET_CURRENT}"
        raise VerificationError(ExitCode.UNTRUSTED_KEY, reason)
    if trust.expires < dt.datetime.now(dt.UTC):
        reason = f"the given trust.json expired at {trust.expires.isoformat()}: {GET_CURRENT}"
        raise VerificationError(ExitCode.UNTRUSTED_KEY, reason)
    return trust


def open_signed(what: str, data: bytes, keys: dict[str, Key], payload_type: str) -> tuple[bytes, list[Key]]:
    """The payload of an envelope and the trusted keys that signed it; `what` names the envelope in error messages.

    Raises:
        VerificationError: The data is not an envelope, or its signatures are not as required.
    """
    try:
        return open_envelope(data, keys, payload_type)
    except NotAnEnvelope as error:
        raise VerificationError(ExitCode.MALFORMED, f"{what} is not a DSSE envelope") from error
    except Untrusted as error:
        raise VerificationError(ExitCode.UNTRUSTED_KEY, f"{what}: {error}") from error
    except BadSignature as error:
        raise VerificationError(ExitCode.BAD_SIGNATURE, f"{what}: {error}") from error


def open_certificate(envelope: bytes, trust: Trust) -> tuple[Statement, list[Key]]:
    """The statement in a certificate's envelope, and the certificate keys that signed it.

    The statement need not fit its schema yet: a reader that does not check the schema guards against missing members.

    Raises:
        VerificationError: The signatures are not as required, the payload is not canonical, or it is another kind.
    """
    payload, signers = open_signed(CERTIFICATE, envelope, trust.keys_for("certificate"), IN_TOTO)
    try:
        statement = loads(payload)
    except NotCanonical as error:
        raise VerificationError(ExitCode.MALFORMED, f"the payload is malformed: {error}") from error
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise VerificationError(ExitCode.MALFORMED, "the payload is not an in-toto statement")
    if statement.get("predicateType") != PREDICATE_TYPE or not isinstance(statement.get("predicate"), dict):
        raise VerificationError(ExitCode.MALFORMED, "the statement is of another kind")
    if statement["predicate"].get("schema") not in KNOWN:
        raise VerificationError(ExitCode.MALFORMED, "the statement follows a schema that this verifier does not know")
    return cast(Statement, statement), signers


def require_signatures(trust: Trust, signers: Sequence[Key], when: dt.datetime) -> None:
    """Check that as many certificate keys signed as were required at `when`.

    Raises:
        VerificationError: Fewer keys signed.
    """
    needed = trust.signatures_needed_at(when)
    if len(signers) < needed:
        reason = f"{len(signers)} certificate keys have signed, {needed} are required"
        raise VerificationError(ExitCode.UNTRUSTED_KEY, reason)
