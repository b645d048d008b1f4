"""Receipts: what a submitter is given once, at intake, and what it proves later, with the text and files alone.

A receipt is a DSSE envelope under a receipt key. It holds the request's random ref and commitment, the nonce and
commitment of each record, the deadline, and the log's checkpoint of that moment. `unlearnd verify-record`:

    1  the receipt is signed by a receipt key                          10, 11, 12
    2  a release folder holds in every step of `unlearnd verify`; a
       certificate alone is signed by keys that counted when it says
       it was issued, and nobody looked for it in the log              10, 11, 12, ...
    3  the text, to the byte, opens the commitment of one record       60 NOT_IN_REQUEST
    4  the request's commitment is over the commitments of its records 60 NOT_IN_REQUEST
    5  the certificate names that request with that commitment, and
       its forget set is over the requests that it names               60 NOT_IN_REQUEST
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from service.audit.canonical import NotCanonical, dumps, loads
from service.audit.commitments import commit, forget_set_root, request_commitment
from service.audit.trust import Key, Trust
from service.audit.verification import (
    ExitCode,
    VerificationError,
    load_trust,
    open_certificate,
    open_signed,
    require_signatures,
)
from service.audit.verify import verify

RECEIPT_TYPE = "application/vnd.unlearnd.receipt+json"
RECEIPT_KIND = "urn:unlearnd:receipt:v1"


@dataclass(frozen=True, slots=True)
class RecordMatch:
    """Where a text was found.

    Attributes:
        record: The record's number in the request, from 0.
        ref: The request's ref.
        verdict: What the certificate says of the request.
        certificate_id: Which certificate.
        overall: What it says of the whole run.
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
    records = [{"nonce": n.hex(), "commitment": c.hex()} for n, c in zip(nonces, commitments, strict=True)]
    return dumps(
        {
            "kind": RECEIPT_KIND, "issuer": issuer, "ref": ref, "model": model, "commitment": commitment.hex(),
            "records": records, "checkpoint": checkpoint, **{k: v.isoformat() for k, v in times.items()},
        }
    )  # fmt: skip


def verify_record(receipt: Path, text: bytes, certificate: Path, trust: Path) -> RecordMatch:
    """Find a text in the certificate of its request.

    Args:
        receipt: The answer to the submission, or its `receipt`, or the envelope in that, as JSON.
        text: The record's exact bytes.
        certificate: A release folder, or a certificate's file.
        trust: A `trust.json` obtained from the issuer by other means.

    Raises:
        VerificationError: It is not there, or something is not signed as it must be.
    """
    trusted = load_trust(trust)
    try:
        content = _read_receipt(receipt, trusted)
        if certificate.is_dir():
            return _find(content, text, verify(certificate, trust).statement["predicate"])
        statement, signers = open_certificate(certificate.read_bytes(), trusted)
        _check_counted(trusted, signers, datetime.fromisoformat(statement["predicate"]["issued_at"]))
        return _find(content, text, statement["predicate"])
    except OSError as error:
        raise VerificationError(ExitCode.INCOMPLETE, "the receipt or the certificate cannot be read") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VerificationError(ExitCode.MALFORMED, f"the receipt is garbled ({type(error).__name__})") from error


def _check_counted(trust: Trust, signers: Sequence[Key], issued: datetime) -> None:
    if not all(key.counts_at(issued) for key in signers):
        raise VerificationError(ExitCode.UNTRUSTED_KEY, "the certificate key did not count when the record was issued")
    require_signatures(trust, signers, issued)


def _read_receipt(path: Path, trust: Trust) -> dict[str, Any]:
    found = json.loads(path.read_bytes())
    for name in ("receipt", "signed"):
        found = found.get(name, found)
    payload, (key,) = open_signed("the receipt", json.dumps(found).encode(), trust.keys_for("receipt"), RECEIPT_TYPE)
    try:
        content: dict[str, Any] = loads(payload)
    except NotCanonical as error:
        raise VerificationError(ExitCode.MALFORMED, f"the receipt is malformed: {error}") from error
    if content["kind"] != RECEIPT_KIND:
        raise VerificationError(ExitCode.MALFORMED, "the receipt is of another kind")
    if not key.counts_at(datetime.fromisoformat(content["accepted_at"])):
        raise VerificationError(ExitCode.UNTRUSTED_KEY, "the receipt key did not count when the receipt was made")
    return content


def _find(receipt: dict[str, Any], text: bytes, predicate: dict[str, Any]) -> RecordMatch:
    commitments = [bytes.fromhex(record["commitment"]) for record in receipt["records"]]
    nonces = [bytes.fromhex(record["nonce"]) for record in receipt["records"]]
    mine = [i for i, nonce in enumerate(nonces) if commit(nonce, text) == commitments[i]]
    if not mine:
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: this text is none of the receipt's records")
    commitment = request_commitment(receipt["ref"], commitments)
    if commitment.hex() != receipt["commitment"]:
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: the records are not those of the commitment")
    lines = {line["ref"]: line for line in predicate["requests"]}
    line = lines.get(receipt["ref"])
    if line is None or line["commitment"] != commitment.hex():
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: the certificate does not name this request")
    named = [(ref, bytes.fromhex(line["commitment"])) for ref, line in lines.items()]
    if forget_set_root(named).hex() != predicate["forget_set"]["commitment_root"]:
        raise VerificationError(ExitCode.NOT_IN_REQUEST, "NOT_IN_REQUEST: the forget set is not over these requests")
    return RecordMatch(mine[0], receipt["ref"], line["verdict"], predicate["certificate_id"], predicate["overall"])
