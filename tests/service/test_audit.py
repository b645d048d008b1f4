"""The verifier: a valid release, and every tampering that it must name."""

import base64
import hashlib
import json
import os
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service.audit.canonical import NotCanonical, dumps, loads
from service.audit.card import model_card
from service.audit.certificate import RequestLine, WordingRefused, bucket, statement
from service.audit.log import Checkpoint, Proof, inclusion_proof, leaf_hash, root, sign_checkpoint
from service.audit.manifest import manifest
from service.audit.signing import PAYLOAD_TYPE, CertificateSigner, create_key, log_trusted, trust_json
from service.audit.verify import CERTIFICATE, PROOF, Code, VerificationError, verify

REPORT = {
    "earlier": {"requests": 2, "regressed": []},
    "artefact": {"evaluated_dtype": "float32", "adapter_sha256": "ab" * 32},
    "thresholds": [
        {"length": 26, "n": 10, "count": 30, "el_mean": 0.0, "ma_mean": 0.4, "el_p95": 0.0, "ma_p95": 0.5, "ma_p1": 0.1}
    ],
    "limits": {"el": 0.01, "ma": 0.4},
    "before": {"el": 0.9, "ma": 0.95},
    "after": {"el": 0.0, "ma": 0.3},
    "utility": {"heldout_ratio": 1.02, "max_ratio": 1.1},
    "epochs": 3,
    "seconds": {"unlearn": 1.5},
    "environment": {"device": "cpu"},
}
ORIGIN = "test/log"
LINES = [RequestLine(name * 32, b"\1" * 32, "PASS", None) for name in "bac"]


def payload(files, **changes) -> bytes:
    """The canonical bytes of a statement over `files`."""
    fields = {
        "certificate_id": "c" * 32, "issuer": "test", "issued_at": datetime(2026, 1, 1, tzinfo=UTC),
        "lineage": {"model": "m", "version": 1, "parent_version": 0},
        "files": files, "published": True, "forget_root": b"\3" * 32,
        "requests": LINES, "records": 3, "corpora": [], "parameters": {"margin": 1.0}, "report": REPORT,
        "overall": "PASS",
    }  # fmt: skip
    return statement(**{**fields, **changes})


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """A certificate key."""
    path = tmp_path_factory.mktemp("keys") / "certificate.pem"
    return signer_at(path)


def signer_at(path: Path) -> CertificateSigner:
    """A certificate key at `path`, with a log's key beside it."""
    create_key(path)
    create_key(path.with_name(path.stem + "-log.pem"))
    signer = CertificateSigner(path)
    signer.log_path = path.with_name(path.stem + "-log.pem")
    return signer


def trust_of(signer: CertificateSigner) -> bytes:
    """Its trust.json."""
    return trust_json([signer.trusted(), log_trusted(signer.log_path, ORIGIN)])


def logged(release: Path, signer: CertificateSigner, **changes) -> Path:
    """Enter the release's certificate into a log of some entries, and put the proof beside it."""
    digest = hashlib.sha256((release / CERTIFICATE).read_bytes()).hexdigest()
    entry = dumps({"kind": "job.certified", "certificate": digest, "overall": "PASS", **changes})
    leaves = [leaf_hash(e) for e in (b"{}", b"[]", entry, b"1", b"2")]
    key = load_pem_private_key(signer.log_path.read_bytes(), None)
    note = sign_checkpoint(Checkpoint(ORIGIN, len(leaves), root(leaves)), key)
    (release / PROOF).write_text(Proof(entry, 2, inclusion_proof(leaves, 2), note).dumps())
    return release


def make_release(folder: Path, signer: CertificateSigner, **changes) -> Path:
    """A release folder with two model files, signed."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(os.urandom(1000))
    (folder / "trust.json").write_bytes(trust_of(signer))
    (folder / CERTIFICATE).write_bytes(signer.sign(payload(manifest(folder), **changes)))
    return logged(folder, signer)


@pytest.fixture
def release(tmp_path, signer):
    """A valid release folder."""
    return make_release(tmp_path / "release", signer)


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a socket fails."""

    def refuse(*_, **__):
        raise AssertionError("the verifier used the network")

    monkeypatch.setattr(socket, "socket", refuse)


def test_a_valid_release_verifies_without_network(release, no_network):
    """With the folder's own trust it shows integrity, with a given one origin."""
    found = verify(release)
    assert found.own_trust
    assert not verify(release, release / "trust.json").own_trust
    assert found.statement["predicate"]["overall"] == "PASS"


def rewrite(release: Path, change) -> None:
    """Change the envelope's JSON."""
    path = release / CERTIFICATE
    envelope = json.loads(path.read_bytes())
    change(envelope)
    path.write_text(json.dumps(envelope))


def repay(envelope: dict, change) -> None:
    """Change the payload's bytes and leave the signature."""
    data = base64.b64decode(envelope["payload"])
    envelope["payload"] = base64.b64encode(change(data)).decode()


def flip(path: Path) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[500 % len(data)] ^= 1
    path.write_bytes(data)


def revoke(release: Path) -> None:
    """Mark the key revoked in trust.json."""
    trust = json.loads((release / "trust.json").read_text())
    trust["keys"][0]["revoked_at"] = "2026-01-01T00:00:00+00:00"
    (release / "trust.json").write_text(json.dumps(trust))


def cut_path(path: Path) -> None:
    """Leave the last hash of the inclusion proof out."""
    head, _, note = path.read_text().partition("\n\n")
    path.write_text("\n".join(head.split("\n")[:-1]) + "\n\n" + note)


TAMPERINGS = {
    "flip a byte": (lambda r: flip(r / "model/model.safetensors"), Code.ARTEFACT_MISMATCH, "model/model.safetensors"),
    "remove a file": (lambda r: (r / "model/config.json").unlink(), Code.ARTEFACT_MISMATCH, "missing"),
    "rename a file": (
        lambda r: (r / "model/config.json").rename(r / "model/c.json"), Code.ARTEFACT_MISMATCH, "model/c.json",
    ),
    "add a file": (lambda r: (r / "model/x.py").write_text(""), Code.ARTEFACT_MISMATCH, "model/x.py"),
    "add a hidden file": (
        lambda r: [(r / ".git").mkdir(), (r / ".git/x").write_text("")], Code.ARTEFACT_MISMATCH, ".git/x",
    ),
    "add a link": (lambda r: (r / "model/link").symlink_to("/etc/passwd"), Code.ARTEFACT_MISMATCH, "model/link"),
    "swap a file for a link": (
        lambda r: [(r / "model/config.json").unlink(), (r / "model/config.json").symlink_to(r / "trust.json")],
        Code.ARTEFACT_MISMATCH, "neither",
    ),
    "change the payload": (
        lambda r: rewrite(r, lambda e: repay(e, lambda d: d.replace(b"PASS", b"FAIL"))),
        Code.BAD_SIGNATURE, "signature",
    ),
    "another payload type": (
        lambda r: rewrite(r, lambda e: e.update(payloadType="text/plain")), Code.BAD_SIGNATURE, "signature",
    ),
    "no signature": (lambda r: rewrite(r, lambda e: e.update(signatures=[])), Code.BAD_SIGNATURE, "no signature"),
    "one key twice": (
        lambda r: rewrite(r, lambda e: e["signatures"].append(e["signatures"][0])), Code.BAD_SIGNATURE, "twice",
    ),
    "revoked key": (revoke, Code.UNTRUSTED_KEY, "revoked"),
    "no certificate": (lambda r: (r / CERTIFICATE).unlink(), Code.INCOMPLETE, "missing"),
    "no trust": (lambda r: (r / "trust.json").unlink(), Code.INCOMPLETE, "trust.json"),
    "nonsense in trust": (
        lambda r: (r / "trust.json").write_text('{"keys": ["x"]}'), Code.MALFORMED, "garbled",
    ),
    "no proof": (lambda r: (r / PROOF).unlink(), Code.INCOMPLETE, PROOF),
    "another index": (
        lambda r: (r / PROOF).write_text((r / PROOF).read_text().replace("index 2", "index 3")),
        Code.LOG_FAILURE, "log",
    ),
    "a cut path": (lambda r: cut_path(r / PROOF), Code.LOG_FAILURE, "too short"),
    "another checkpoint": (
        lambda r: (r / PROOF).write_text((r / PROOF).read_text().replace("\n5\n", "\n6\n")), Code.LOG_FAILURE,
        "signature",
    ),
    "nonsense for a proof": (lambda r: (r / PROOF).write_text("nonsense"), Code.LOG_FAILURE, "not a log proof"),
    "not an envelope": (lambda r: (r / CERTIFICATE).write_text("[]"), Code.MALFORMED, "envelope"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
def test_every_tampering_is_named(release, no_network, name):
    """One thing changed: the code and the reason say what."""
    change, code, reason = TAMPERINGS[name]
    change(release)
    with pytest.raises(VerificationError) as caught:
        verify(release)
    assert caught.value.code == code, caught.value.reason
    assert reason in caught.value.reason
    assert "verified" not in caught.value.reason


def test_a_strangers_key_is_untrusted(tmp_path, release):
    """A release signed by another key, trust.json and all, does not pass against the issuer's trust."""
    forged = make_release(tmp_path / "forged", signer_at(tmp_path / "other.pem"))
    with pytest.raises(VerificationError) as caught:
        verify(forged, release / "trust.json")
    assert caught.value.code == Code.UNTRUSTED_KEY


def test_the_certificate_of_another_version_does_not_fit(tmp_path, release, signer):
    """Certificate of one release on the files of another."""
    other = make_release(tmp_path / "other", signer)
    shutil.copy(other / CERTIFICATE, release / CERTIFICATE)
    with pytest.raises(VerificationError) as caught:
        verify(release)
    assert caught.value.code == Code.ARTEFACT_MISMATCH


def signed_with(release: Path, signer: CertificateSigner, change) -> None:
    """Put a validly signed but changed payload in."""
    original = base64.b64decode(json.loads((release / CERTIFICATE).read_bytes())["payload"])
    (release / CERTIFICATE).write_bytes(signer.sign(change(original)))
    logged(release, signer)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.replace(b'"overall":"PASS"', b'"overall":"PASS","overall":"PASS"'),
        lambda d: d.replace(b'"epochs":3', b'"epochs":NaN'),
        lambda d: d.replace(b'"epochs":3', b'"epochs": 3'),
        lambda d: d.replace(b"urn:unlearnd:record:v1", b"urn:something:else:v1"),
        lambda d: b"not json",
        lambda d: dumps({"_type": "https://in-toto.io/Statement/v1", "subject": []}),
    ],
)
def test_signed_nonsense_is_malformed(release, signer, change):
    """A trusted signature does not make duplicate keys, NaN, spaces or another predicate right."""
    signed_with(release, signer, change)
    with pytest.raises(VerificationError) as caught:
        verify(release)
    assert caught.value.code == Code.MALFORMED


POLICY_FAILURES = {
    "a request failed": {"requests": [*LINES[:2], RequestLine("d" * 32, b"\2" * 32, "FAIL", "criterion_missed")]},
    "no request": {"requests": []},
    "MA over the limit": {"report": {**REPORT, "after": {"el": 0.0, "ma": 0.41}}},
    "EL over the limit": {"report": {**REPORT, "after": {"el": 0.02, "ma": 0.3}}},
    "over budget": {"report": {**REPORT, "utility": {"heldout_ratio": 1.2, "max_ratio": 1.1}}},
    "an earlier request came back": {"report": {**REPORT, "earlier": {"requests": 2, "regressed": ["r"]}}},
    "not published": {"published": False},
    "overall FAIL": {"overall": "FAIL"},
    "no thresholds": {"report": {**REPORT, "thresholds": []}},
    "a version is skipped": {"lineage": {"model": "m", "version": 3, "parent_version": 0}},
    "no utility": {"report": {**REPORT, "utility": None}},
}


@pytest.mark.parametrize("name", POLICY_FAILURES)
def test_overall_is_recomputed(tmp_path, signer, name):
    """PASS is believed only if the numbers and verdicts add up to it."""
    release = make_release(tmp_path / "r", signer, **POLICY_FAILURES[name])
    with pytest.raises(VerificationError) as caught:
        verify(release)
    assert caught.value.code == Code.POLICY_FAILURE


FEW = {
    "two requests": LINES[:2],
    "three, of which one was not memorised": [*LINES[:2], RequestLine("d" * 32, b"\4" * 32, "PASS", "not_memorised")],
}


@pytest.mark.parametrize("name", FEW)
def test_means_of_few_requests_are_not_told(tmp_path, signer, name):
    """They would be about a person; such a release verifies by its verdicts, and one that tells them does not."""
    release = make_release(tmp_path / "r", signer, requests=FEW[name])
    found = verify(release).statement["predicate"]["verification"]
    assert set(found["before"].values()) | set(found["after"].values()) == {"suppressed"}
    assert b"0.95" not in base64.b64decode(json.loads((release / CERTIFICATE).read_bytes())["payload"])
    told = lambda d: d.replace(b'"after":{"el":"suppressed","ma":"suppressed"}', b'"after":{"el":"0.0","ma":"0.3"}')  # noqa: E731
    signed_with(release, signer, told)
    with pytest.raises(VerificationError, match="fewer than") as caught:
        verify(release)
    assert caught.value.code == Code.POLICY_FAILURE


def test_a_card_does_not_tell_them_either():
    """The model card is as public as the certificate."""
    report = {
        **REPORT, "memorised": ["a"],
        "utility": {**REPORT["utility"], "heldout_perplexity_before": 9.0, "heldout_perplexity_after": 9.1},
    }  # fmt: skip
    assert "0.95" not in model_card("m", 0, report)
    assert "0.950000" in model_card("m", 0, {**report, "memorised": ["a", "b", "c"]})


@pytest.mark.parametrize(
    "changes", [{"certificate": "0" * 64}, {"kind": "job.batched"}, {"overall": "FAIL"}], ids=lambda c: next(iter(c))
)
def test_an_entry_of_another_kind_or_certificate_is_no_proof(release, signer, changes):
    """The log has to have this certificate, as passed."""
    logged(release, signer, **changes)
    with pytest.raises(VerificationError) as caught:
        verify(release)
    assert caught.value.code == Code.LOG_FAILURE


def test_a_strangers_log_is_not_trusted(tmp_path, release):
    """A proof against a checkpoint that another key signed."""
    logged(release, signer_at(tmp_path / "other.pem"))
    with pytest.raises(VerificationError, match="no trusted key") as caught:
        verify(release)
    assert caught.value.code == Code.LOG_FAILURE


@pytest.mark.parametrize("issuer", ["we guarantee it", "dpo@example.org", "all data ERASED"])
def test_the_issuer_refuses_and_the_verifier_names_bad_wording(release, signer, issuer):
    """The issuer does not write it; the verifier does not accept it from anyone who did."""
    with pytest.raises(WordingRefused):
        payload(manifest(release), issuer=issuer)
    signed_with(
        release, signer, lambda d: dumps({**json.loads(d), "predicate": {**json.loads(d)["predicate"], "x": issuer}})
    )
    with pytest.raises(VerificationError) as caught:
        verify(release)
    assert caught.value.code == Code.POLICY_FAILURE


def test_numbers_are_decimal_strings_and_counts_are_ranges():
    """No JSON float, no exact record count, requests sorted by ref."""
    predicate = json.loads(payload([{"path": "p", "size": 1, "sha256": "0" * 64}]))["predicate"]
    assert predicate["verification"]["after"] == {"el": "0.000000", "ma": "0.300000"}
    assert predicate["forget_set"]["records"] == bucket(3) == "<= 5"
    assert [r["ref"][0] for r in predicate["requests"]] == ["a", "b", "c"]
    assert bucket(10**6) == "> 1000"


def test_canonical_json_round_trip():
    """Keys sorted, no spaces, and only that form is read."""
    assert dumps({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert loads(dumps({"b": [1, None]})) == {"b": [1, None]}
    for bad in (b'{"b":1,"a":1}', b'{"a":1} ', b'{"a":1,"a":1}', b"\xff"):
        with pytest.raises(NotCanonical):
            loads(bad)


def test_the_envelope_is_plain_dsse(release, signer):
    """Checked with `cryptography` alone: ed25519 over the pre-authentication encoding."""
    envelope = json.loads((release / CERTIFICATE).read_bytes())
    trust = json.loads((release / "trust.json").read_bytes())
    body = base64.b64decode(envelope["payload"])
    kind = PAYLOAD_TYPE.encode()
    pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)
    public = trust["keys"][0]["keyval"]["public"]
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == trust["keys"][0]["keyid"]
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(base64.b64decode(signature["sig"]), pae)
