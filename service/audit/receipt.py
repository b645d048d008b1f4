"""Receipts: a submitter gets one at intake, and later shows with it, offline, that a text was in a request.

A receipt is a DSSE envelope signed by a receipt key. It holds the request's random ref and commitment, the nonce and
commitment of each record, the deadline, and the log's checkpoint at intake. `unlearnd verify-record` checks:

    1  a receipt key signed the receipt                                  10, 11, 12
    2  a release folder passes every step of `unlearnd verify`; the
       keys of a certificate file alone were valid at the issue time
       that it states, and the log is not checked                        10, 11, 12, ...
    3  the exact bytes of the text open the commitment of one record     60 NOT_IN_REQUEST
    4  the request's commitment covers the commitments of its records    60 NOT_IN_REQUEST
    5  the certificate names the request with this commitment, and its
       forget set covers exactly the requests that it names              60 NOT_IN_REQUEST
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypedDict

from service.audit.canonical import NotCanonical, dumps, loads
from service.audit.commitments import commit, forget_set_root, request_commitment
from service.audit.predicate import Predicate
from service.audit.trust import Key, Trust
from service.audit.verification import (
    ExitCode,
    VerificationError,
    load_given_trust,
    open_certificate,
    open_signed,
    require_signatures,
)
from service.audit.verify import verify

RECEIPT_TYPE = "application/vnd.unlearnd.receipt+json"
RECEIPT_KIND = "urn:unlearnd:receipt:v1"


class RecordOpening(TypedDict):
    """The opening of a record's commitment, in hex."""

    nonce: str
    commitment: str


class ReceiptContent(TypedDict):
    """The members of a receipt that the check reads."""

    kind: str
    ref: str
    commitment: str
    records: list[RecordOpening]
    accepted_at: str


@dataclass(frozen=True, slots=True)
class RecordMatch:
    """The record whose text matches, and the verdict on its request.

    Attributes:
        record: The record's number in the request, from 0.
        ref: The request's ref.
        verdict: The certificate's verdict on the request.
        certificate_id: The id of the certificate.
        overall: The certificate's verdict on the whole run.
    """

    record: int
    ref: str
    verdict: str
    certificate_id: str
    overall: str


def receipt_payload(
    *,
    issuer: str,
    ref: str,
    model: str,
    commitment: bytes,
    nonces: Sequence[bytes],
    commitments: Sequence[bytes],
    times: dict[str, datetime],
    checkpoint: str | None,
) -> bytes:
    """The canonical bytes of a receipt; `times` are received_at, accepted_at and due_at."""
    pairs = zip(nonces, commitments, strict=True)
    receipt = {
        "kind": RECEIPT_KIND,
        "issuer": issuer,
        "ref": ref,
        "model": model,
        "commitment": commitment.hex(),
        "records": [{"nonce": nonce.hex(), "commitment": opened.hex()} for nonce, opened in pairs],
        "checkpoint": checkpoint,
        **{name: time.isoformat() for name, time in times.items()},
    }
    return dumps(receipt)


def verify_record(receipt: Path, text: bytes, certificate: Path, trust: Path) -> RecordMatch:
    """Check that a text was in a request, and that a certificate covers this request.

    Args:
        receipt: A JSON file: the answer to the submission, its member `receipt`, or the envelope in that.
        text: The record's exact bytes.
        certificate: A release folder or a certificate file.
        trust: A `trust.json` that the issuer gave out in another way than the release.

    Raises:
        VerificationError: The text or the request is not there, or a signature is not as required.
    """
    trusted = load_given_trust(trust)
    try:
        content = _read_receipt(receipt, trusted)
        if certificate.is_dir():
            return _match(content, text, verify(certificate, trust).statement["predicate"])
        statement, signers = open_certificate(certificate.read_bytes(), trusted)
        _check_signers(trusted, signers, datetime.fromisoformat(statement["predicate"]["issued_at"]))
        return _match(content, text, statement["predicate"])
    except OSError as error:
        raise VerificationError(ExitCode.INCOMPLETE, "the receipt or the certificate cannot be read") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"the receipt or the certificate is malformed ({type(error).__name__})"
        raise VerificationError(ExitCode.MALFORMED, reason) from error


def _check_signers(trust: Trust, signers: Sequence[Key], issued: datetime) -> None:
    """The certificate keys were valid, and as many as required, at the issue time."""
    if not all(key.valid_at(issued) for key in signers):
        reason = "a certificate key was not valid when the certificate was issued"
        raise VerificationError(ExitCode.UNTRUSTED_KEY, reason)
    require_signatures(trust, signers, issued)


def _read_receipt(path: Path, trust: Trust) -> ReceiptContent:
    """The payload of a receipt whose key and kind are right."""
    envelope = json.loads(path.read_bytes())
    for name in ("receipt", "signed"):
        envelope = envelope.get(name, envelope)
    data, keys = json.dumps(envelope).encode(), trust.keys_for("receipt")
    payload, (key,) = open_signed("the receipt", data, keys, RECEIPT_TYPE)
    try:
        content: ReceiptContent = loads(payload)
    except NotCanonical as error:
        raise VerificationError(ExitCode.MALFORMED, f"the receipt is malformed: {error}") from error
    if content["kind"] != RECEIPT_KIND:
        raise VerificationError(ExitCode.MALFORMED, "the receipt is of another kind")
    if not key.valid_at(datetime.fromisoformat(content["accepted_at"])):
        raise VerificationError(ExitCode.UNTRUSTED_KEY, "the receipt key was not valid when the receipt was made")
    return content


def _match(receipt: ReceiptContent, text: bytes, predicate: Predicate) -> RecordMatch:
    """The receipt's record with this text, and the certificate's line about its request."""
    commitments = [bytes.fromhex(record["commitment"]) for record in receipt["records"]]
    nonces = [bytes.fromhex(record["nonce"]) for record in receipt["records"]]
    matches = [i for i, nonce in enumerate(nonces) if commit(nonce, text) == commitments[i]]
    if not matches:
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: the receipt has no record with this text")
    commitment = request_commitment(receipt["ref"], commitments)
    if commitment.hex() != receipt["commitment"]:
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: the records do not match the commitment")
    lines = {line["ref"]: line for line in predicate["requests"]}
    line = lines.get(receipt["ref"])
    if line is None or line["commitment"] != commitment.hex():
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: the certificate does not name this request")
    named = [(ref, bytes.fromhex(line["commitment"])) for ref, line in lines.items()]
    if forget_set_root(named).hex() != predicate["forget_set"]["commitment_root"]:
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: the forget set does not match the requests")
    return RecordMatch(matches[0], receipt["ref"], line["verdict"], predicate["certificate_id"], predicate["overall"])
