"""Receipts: the text, and only the text, is found in the certificate of its request."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from service.audit.canonical import dumps
from service.audit.certificate import RequestLine
from service.audit.commitments import NONCE_BYTES, commit, request_commitment
from service.audit.receipt import RECEIPT_TYPE, receipt_payload, verify_record
from service.audit.verification import CERTIFICATE, ExitCode, VerificationError
from tests.issuer import LINES, Issuer

pytestmark = pytest.mark.usefixtures("no_network")
TEXTS = [b"Maria Example, 12 Sample Street", b"Maria's second text", b"a third"]
REF = "f" * 32


class Submitted:
    """A request of three texts, its receipt, and the release with its certificate."""

    def __init__(self, folder):
        """Make them."""
        self.issuer = Issuer(folder / "keys")
        self.folder = folder
        self.nonces = [os.urandom(NONCE_BYTES) for _ in TEXTS]
        self.commitments = [commit(n, t) for n, t in zip(self.nonces, TEXTS, strict=True)]
        self.line = RequestLine(REF, request_commitment(REF, self.commitments), "PASS", None)
        self.release = self.issuer.release(folder / "release", requests=[*LINES, self.line])
        self.receipt = self.write(self.signed())

    def fields(self) -> dict:
        """What the receipt says."""
        now = datetime.now(UTC)
        return {
            "issuer": "test",
            "ref": REF,
            "model": "m",
            "commitment": self.line.commitment,
            "nonces": self.nonces,
            "commitments": self.commitments,
            "checkpoint": None,
            "times": {"received_at": now, "accepted_at": now, "due_at": now + timedelta(days=30)},
        }

    def signed(self, role: str = "receipt", kind: str = RECEIPT_TYPE, **changes) -> dict:
        """A receipt, as the envelope that the API gives."""
        return json.loads(self.issuer.keyring.sign(role, receipt_payload(**{**self.fields(), **changes}), kind))

    def write(self, content):
        """Content as a file."""
        path = self.folder / "receipt.json"
        path.write_text(json.dumps(content))
        return path

    def check(self, text=TEXTS[1], certificate=None, trust=None):
        """Look for a text."""
        place = certificate or self.release
        return verify_record(self.receipt, text, place, trust or self.issuer.trust_path)

    def refused(self, **arguments) -> VerificationError:
        """What is said if it is not found."""
        with pytest.raises(VerificationError) as caught:
            self.check(**arguments)
        return caught.value


@pytest.fixture
def submitted(tmp_path):
    """A request with its receipt."""
    return Submitted(tmp_path)


def test_a_text_is_found_by_its_receipt(submitted):
    """Each record, from the whole answer or the envelope alone, in the folder or the certificate alone."""
    for number, text in enumerate(TEXTS):
        verified = submitted.check(text)
        assert (verified.record, verified.ref, verified.verdict, verified.overall) == (number, REF, "PASS", "PASS")
    assert submitted.check(certificate=submitted.release / CERTIFICATE).certificate_id == "c" * 32
    for wrapped in ({"signed": submitted.signed()}, {"receipt": {"signed": submitted.signed()}, "id": "x"}):
        submitted.write(wrapped)
        assert submitted.check().record == 1


@pytest.mark.parametrize("text", [TEXTS[1] + b" ", TEXTS[1][1:], b"", TEXTS[1].lower(), TEXTS[0] + TEXTS[1]])
def test_another_text_is_not_in_the_request(submitted, text):
    """Not even with one changed space."""
    refusal = submitted.refused(text=text)
    assert refusal.code == ExitCode.NOT_IN_REQUEST
    assert refusal.reason == "NOT_IN_REQUEST: the receipt has no record with this text"


def test_a_receipt_has_one_signer(submitted):
    """Second owners are of certificates alone; a file with such a name of another role changes nothing."""
    path = submitted.issuer.keyring.path("receipt")
    shutil.copy(path, path.with_name("receipt-second.pem"))
    assert len(submitted.signed()["signatures"]) == 1


def test_what_a_receipt_says(submitted):
    """Exactly this, in canonical form: nothing of the text."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    names = ("received_at", "accepted_at", "due_at")
    fields = {**submitted.fields(), "times": dict.fromkeys(names, at), "checkpoint": "note"}
    assert json.loads(receipt_payload(**fields)) == {
        "kind": "urn:unlearnd:receipt:v1",
        "issuer": "test",
        "ref": REF,
        "model": "m",
        "commitment": submitted.line.commitment.hex(),
        "checkpoint": "note",
        "records": [
            {"nonce": n.hex(), "commitment": c.hex()}
            for n, c in zip(submitted.nonces, submitted.commitments, strict=True)
        ],
        **dict.fromkeys(names, "2026-01-02T03:04:05+00:00"),
    }
    with pytest.raises(ValueError, match="zip"):
        receipt_payload(**{**fields, "nonces": submitted.nonces[:1]})


def test_another_nonce_record_or_request_is_not_in_it(submitted):
    """A receipt, rightly signed, that does not fit the certificate."""
    other = os.urandom(NONCE_BYTES)
    replaced = [*submitted.commitments[:2], commit(other, TEXTS[2])]
    cases = {
        "another nonce": {"nonces": [*submitted.nonces[:2], other]},
        "another record": {"nonces": [*submitted.nonces[:2], other], "commitments": replaced},
        "a record less": {"nonces": submitted.nonces[:2], "commitments": submitted.commitments[:2]},
        "reordered": {"nonces": submitted.nonces[::-1], "commitments": submitted.commitments[::-1]},
        "another ref": {"ref": "e" * 32},
        "another request": {
            "nonces": [*submitted.nonces[:2], other],
            "commitments": replaced,
            "commitment": request_commitment(REF, replaced),
        },
        "a request that is not there": {
            "ref": "e" * 32,
            "commitment": request_commitment("e" * 32, submitted.commitments),
        },
    }
    reasons = {
        "another nonce": None,
        "another record": "the records do not match the commitment",
        "a record less": "the records do not match the commitment",
        "reordered": "the records do not match the commitment",
        "another ref": "the records do not match the commitment",
        "another request": "the certificate does not name this request",
        "a request that is not there": "the certificate does not name this request",
    }
    for name, changes in cases.items():
        submitted.write(submitted.signed(**changes))
        if reasons[name] is None:  # the nonce of another record: this one's text opens still
            assert submitted.refused(text=TEXTS[2]).code == ExitCode.NOT_IN_REQUEST
            continue
        refusal = submitted.refused()
        assert (refusal.code, refusal.reason) == (ExitCode.NOT_IN_REQUEST, f"NOT_IN_REQUEST: {reasons[name]}"), name


def test_a_forget_set_over_other_requests_is_named(submitted):
    """The certificate names the request, but its root is not over those that it names."""
    submitted.issuer.changed(submitted.release, "forget_set", "commitment_root", to="0" * 64)
    refusal = submitted.refused()
    assert (refusal.code, refusal.reason) == (
        ExitCode.NOT_IN_REQUEST,
        "NOT_IN_REQUEST: the forget set does not match the requests",
    )


def test_what_is_not_signed_as_it_must_be(submitted, tmp_path):
    """Another key, role, type or kind, a changed byte, a stranger's trust, files that are not there."""
    good, keyring = submitted.signed(), submitted.issuer.keyring
    stranger = Issuer(tmp_path / "stranger")
    spaced = receipt_payload(**submitted.fields()).replace(b":", b": ", 1)
    unsigned_time = submitted.signed(times={"accepted_at": datetime(2020, 1, 1, tzinfo=UTC)})
    of_a_stranger = json.loads(stranger.keyring.sign("receipt", receipt_payload(**submitted.fields()), RECEIPT_TYPE))
    untrusted = "the receipt: signed by a key that is unknown, expired or revoked"
    cases = [
        (of_a_stranger, 11, untrusted),
        (submitted.signed("certificate"), 11, untrusted),
        (submitted.signed(kind="text/plain"), 10, "the receipt: the signature is for another type of payload"),
        (
            {**good, "payload": submitted.signed(ref="e" * 32)["payload"]},
            10,
            "the receipt: the signature does not match the payload",
        ),
        (json.loads(keyring.sign("receipt", dumps({"kind": "x"}), RECEIPT_TYPE)), 12, "the receipt is of another kind"),
        (
            json.loads(keyring.sign("receipt", spaced, RECEIPT_TYPE)),
            12,
            "the receipt is malformed: the bytes are not in canonical form",
        ),
        (unsigned_time, 11, "the receipt key was not valid when the receipt was made"),
        ({}, 12, "the receipt is not a DSSE envelope"),
        ([], 12, "the receipt or the certificate is malformed (AttributeError)"),
        ("x", 12, "the receipt or the certificate is malformed (AttributeError)"),
    ]
    for content, code, reason in cases:
        submitted.write(content)
        refusal = submitted.refused()
        assert (refusal.code, refusal.reason) == (code, reason)
    submitted.receipt.write_text("nonsense")
    assert submitted.refused().reason == "the receipt or the certificate is malformed (JSONDecodeError)"
    submitted.write(good)
    submitted.check()
    assert submitted.refused(trust=stranger.trust_path).code == ExitCode.UNTRUSTED_KEY
    refusal = submitted.refused(certificate=tmp_path / "nothing")
    assert (refusal.code, refusal.reason) == (ExitCode.INCOMPLETE, "the receipt or the certificate cannot be read")
    assert submitted.refused(trust=tmp_path / "nothing").code == ExitCode.INCOMPLETE
    forged = stranger.release(tmp_path / "forged", requests=[*LINES, submitted.line])
    assert submitted.refused(certificate=forged).code == ExitCode.UNTRUSTED_KEY
