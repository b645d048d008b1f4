"""The verifier: a valid release, and every tampering that it must name."""

import base64
import datetime as dt
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from service.audit.canonical import dumps
from service.audit.certificate import NOT_MEMORISED, RequestLine, WordingRefused
from service.audit.dsse import IN_TOTO
from service.audit.manifest import manifest, manifest_digest
from service.audit.merkle import node_hash
from service.audit.verification import CERTIFICATE, ExitCode, VerificationError
from service.audit.verify import MODEL_SIGNATURE, PROOF, STEPS, verify
from service.evidence.keyring import NoSuchKey
from tests.issuer import LINEAGE, LINES, POLICY, REPORT, TABLE, Issuer, release_payload

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    """Who issues; no test changes these keys."""
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def release(tmp_path, issuer):
    """A valid release folder."""
    return issuer.release(tmp_path / "release")


def refused(release: Path, trust: Path | None = None, parent: Path | None = None) -> VerificationError:
    """What the verifier says of a release that it does not take."""
    with pytest.raises(VerificationError) as caught:
        verify(release, trust, parent)
    assert "verified" not in caught.value.reason
    return caught.value


def test_a_valid_release_verifies(release, issuer):
    """Every step is told in order; with the folder's own trust it shows integrity, with a given one origin."""
    steps = []
    found = verify(release, passed=steps.append)
    assert tuple(steps) == STEPS
    assert found.own_trust
    assert not verify(release, issuer.trust_path).own_trust
    assert found.statement["predicate"]["overall"] == "PASS"
    assert found.checkpoint.size == 6
    trust = json.loads(issuer.keyring.trust())
    assert found.keyids == [k["keyid"] for k in trust["keys"] if k["role"] == "certificate"]


def rewrite(path: Path, change) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def repay(envelope: dict, change) -> None:
    """Change the payload's bytes and leave the signature."""
    envelope["payload"] = base64.b64encode(change(base64.b64decode(envelope["payload"]))).decode()


def flip(path: Path, at: int = 500) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def mark(release: Path, role: str, **marks) -> None:
    """Mark a key of trust.json."""
    rewrite(release / "trust.json", lambda t: [k.update(marks) for k in t["keys"] if k["role"] == role])


def cut_path(path: Path) -> None:
    """Leave the last hash of the inclusion proof out."""
    head, _, note = path.read_text().partition("\n\n")
    path.write_text("\n".join(head.split("\n")[:-1]) + "\n\n" + note)


def node_for_leaf(path: Path) -> None:
    """Offer the node above the entry as if it were an entry."""
    lines = path.read_text().split("\n")
    node = node_hash(b"\0" * 32, base64.b64decode(lines[3]))
    lines[1] = f"extra {base64.b64encode(node).decode()}"
    path.write_text("\n".join(lines))


def swap(release: Path) -> None:
    """Two files change their names."""
    a, b = release / "model/config.json", release / "model/model.safetensors"
    a.rename(release / "x")
    b.rename(a)
    (release / "x").rename(b)


LATER, EARLIER = "2999-01-01T00:00:00+00:00", "2001-01-01T00:00:00+00:00"
TAMPERINGS = {
    "flip a byte": (lambda r: flip(r / "model/model.safetensors"), ExitCode.ARTEFACT_MISMATCH, "model/model.safetensors"),
    "flip the last byte": (
        lambda r: flip(r / "model/model.safetensors", -1), ExitCode.ARTEFACT_MISMATCH, "model/model.safetensors",
    ),
    "remove a file": (lambda r: (r / "model/config.json").unlink(), ExitCode.ARTEFACT_MISMATCH, "config.json is missing"),
    "rename a file": (
        lambda r: (r / "model/config.json").rename(r / "model/c.json"), ExitCode.ARTEFACT_MISMATCH, "model/c.json",
    ),
    "swap two files": (swap, ExitCode.ARTEFACT_MISMATCH, "model/config.json"),
    "add a file": (lambda r: (r / "model/x.py").write_text(""), ExitCode.ARTEFACT_MISMATCH, "x.py is not in the"),
    "add a hidden file": (
        lambda r: [(r / ".git").mkdir(), (r / ".git/x").write_text("")], ExitCode.ARTEFACT_MISMATCH, ".git/x",
    ),
    "add a hidden file to the model": (
        lambda r: [(r / "model/.git").mkdir(), (r / "model/.git/x").write_text("")], ExitCode.ARTEFACT_MISMATCH, ".git/x",
    ),
    "change trust.json by a space": (
        lambda r: (r / "trust.json").write_bytes((r / "trust.json").read_bytes() + b" "), ExitCode.ARTEFACT_MISMATCH,
        "trust.json",
    ),
    "add a link": (lambda r: (r / "model/link").symlink_to("/etc/passwd"), ExitCode.ARTEFACT_MISMATCH, "model/link"),
    "swap a file for a link": (
        lambda r: [(r / "model/config.json").unlink(), (r / "model/config.json").symlink_to(r / "trust.json")],
        ExitCode.ARTEFACT_MISMATCH, "neither",
    ),
    "swap a folder for a link": (
        lambda r: [(r / "model").rename(r.parent / "m"), (r / "model").symlink_to(r.parent / "m")],
        ExitCode.ARTEFACT_MISMATCH, "neither",
    ),
    "certificate behind a link": (
        lambda r: [(r / CERTIFICATE).rename(r.parent / "c"), (r / CERTIFICATE).symlink_to(r.parent / "c")],
        ExitCode.INCOMPLETE, CERTIFICATE,
    ),
    "PASS turned to FAIL": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: repay(e, lambda d: d.replace(b'"PASS"', b'"FAIL"'))),
        ExitCode.BAD_SIGNATURE, "signature",
    ),
    "another payload type": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: e.update(payloadType="text/plain")), ExitCode.BAD_SIGNATURE, "type",
    ),
    "no signature": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: e.update(signatures=[])), ExitCode.UNTRUSTED_KEY, "nobody has signed",
    ),
    "one key twice": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: e["signatures"].append(e["signatures"][0])),
        ExitCode.UNTRUSTED_KEY, "twice",
    ),
    "signed by the log's key": (
        lambda r: rewrite(
            r / "trust.json",
            lambda t: [k.update(role={"log": "certificate", "certificate": "log"}.get(k["role"], k["role"]))
                       for k in t["keys"]],
        ),
        ExitCode.UNTRUSTED_KEY, "unknown",
    ),
    "revoked key": (lambda r: mark(r, "certificate", revoked_at=LATER), ExitCode.UNTRUSTED_KEY, "revoked"),
    "expired key": (lambda r: mark(r, "certificate", valid_until=EARLIER), ExitCode.UNTRUSTED_KEY, "expired"),
    "no certificate": (lambda r: (r / CERTIFICATE).unlink(), ExitCode.INCOMPLETE, f"{CERTIFICATE} is missing"),
    "no trust": (lambda r: (r / "trust.json").unlink(), ExitCode.INCOMPLETE, "trust.json"),
    "no word of how many must sign": (
        lambda r: rewrite(r / "trust.json", lambda t: t.pop("certificate_keys_needed")), ExitCode.INCOMPLETE, "trust.json",
    ),
    "no keys in trust": (lambda r: (r / "trust.json").write_text('{"keys": []}'), ExitCode.INCOMPLETE, "trust.json"),
    "nonsense in trust": (lambda r: (r / "trust.json").write_text('{"keys": ["x"]}'), ExitCode.INCOMPLETE, "trust.json"),
    "no model signature": (lambda r: (r / MODEL_SIGNATURE).unlink(), ExitCode.ARTEFACT_MISMATCH, MODEL_SIGNATURE),
    "no proof": (lambda r: (r / PROOF).unlink(), ExitCode.INCOMPLETE, PROOF),
    "another index": (
        lambda r: (r / PROOF).write_text((r / PROOF).read_text().replace("index 4", "index 3")),
        ExitCode.LOG_FAILURE, "log",
    ),
    "a cut path": (lambda r: cut_path(r / PROOF), ExitCode.LOG_FAILURE, "too short"),
    "a node for a leaf": (lambda r: node_for_leaf(r / PROOF), ExitCode.LOG_FAILURE, "not in the log"),
    "another checkpoint": (
        lambda r: (r / PROOF).write_text((r / PROOF).read_text().replace("\n6\n", "\n7\n")), ExitCode.LOG_FAILURE,
        "signature",
    ),
    "nonsense for a proof": (lambda r: (r / PROOF).write_text("nonsense"), ExitCode.LOG_FAILURE, "not a log proof"),
    "bytes for a proof": (lambda r: (r / PROOF).write_bytes(b"\xff"), ExitCode.LOG_FAILURE, "not a log proof"),
    "not an envelope": (lambda r: (r / CERTIFICATE).write_text("[]"), ExitCode.MALFORMED, "envelope"),
    "nonsense for an envelope": (lambda r: (r / CERTIFICATE).write_text("nonsense"), ExitCode.MALFORMED, "envelope"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
def test_every_tampering_is_named(release, name):
    """One thing changed: the code and the reason say what."""
    change, code, reason = TAMPERINGS[name]
    change(release)
    found = refused(release)
    assert found.code == code, found.reason
    assert reason in found.reason


@pytest.mark.parametrize(
    ("role", "reason"), [("certificate", CERTIFICATE), ("release", MODEL_SIGNATURE), ("log", PROOF)]
)
def test_a_key_that_the_issuer_has_revoked_since(release, issuer, tmp_path, role, reason):
    """Whichever of the three: the trust.json that was given out of band says so, the folder's own cannot know."""
    (tmp_path / "trust.json").write_bytes(issuer.keyring.trust())
    mark(tmp_path, role, revoked_at=LATER)
    found = refused(release, tmp_path / "trust.json")
    assert (found.code, reason in found.reason) == (ExitCode.UNTRUSTED_KEY, True), found.reason
    assert verify(release).own_trust


def test_a_fail_that_was_turned_to_pass(tmp_path, issuer):
    """The record of a failed run with its verdicts rewritten, the signature left as it was."""
    failed = [RequestLine(line.ref, line.commitment, "FAIL", "criterion_missed") for line in LINES]
    release = issuer.release(tmp_path / "r", requests=failed, overall="FAIL", published=False)
    assert refused(release).code == ExitCode.POLICY_FAILURE
    honest = {b'"FAIL"': b'"PASS"', b'"published":false': b'"published":true', b'"criterion_missed"': b"null"}

    def forge(data: bytes) -> bytes:
        for old, new in honest.items():
            data = data.replace(old, new)
        return data

    rewrite(release / CERTIFICATE, lambda e: repay(e, forge))
    assert refused(release).code == ExitCode.BAD_SIGNATURE
    assert json.loads(release_payload(release))["predicate"]["overall"] == "PASS"


# Whole forgeries: everything is signed, by the wrong key or over the wrong thing.


def test_a_strangers_key_is_untrusted(tmp_path, release, issuer):
    """A release signed by another key, trust.json and all, does not pass against the issuer's trust."""
    forged = Issuer(tmp_path / "other").release(tmp_path / "forged")
    assert verify(forged).own_trust
    assert refused(forged, issuer.trust_path).code == ExitCode.UNTRUSTED_KEY


def test_an_unknown_key_that_comes_with_its_public_half(release, issuer, tmp_path):
    """A second signature by a key that trust.json does not name makes it untrusted, whatever the first is."""
    both = json.loads((release / CERTIFICATE).read_bytes())
    other = Issuer(tmp_path / "other").keyring.sign("certificate", release_payload(release), IN_TOTO)
    both["signatures"] += json.loads(other)["signatures"]
    (release / CERTIFICATE).write_text(json.dumps(both))
    assert refused(release, issuer.trust_path).code == ExitCode.UNTRUSTED_KEY


def test_two_owners_must_both_have_signed(tmp_path):
    """With two certificate keys both sign; one under two names is refused, one alone is not enough; before, it was."""
    two = Issuer(tmp_path / "keys")
    two.at -= dt.timedelta(seconds=10)
    alone = two.release(tmp_path / "alone")
    shutil.copy(Issuer(tmp_path / "second").keyring.path("certificate"), tmp_path / "keys" / "certificate-second.pem")
    two.keyring.create()
    needed = json.loads(two.keyring.trust())["certificate_keys_needed"]
    assert [n["count"] for n in needed] == [1, 2]
    verify(alone, two.trust_path)
    two.at += dt.timedelta(seconds=20)
    release = two.release(tmp_path / "release")
    assert len(verify(release).keyids) == 2
    envelope = json.loads((release / CERTIFICATE).read_bytes())
    first, second = envelope["signatures"]
    (release / CERTIFICATE).write_text(json.dumps({**envelope, "signatures": [first]}))
    found = refused(two.enter(release))
    assert (found.code, found.reason) == (ExitCode.UNTRUSTED_KEY, "1 certificate keys have signed, 2 are required")
    twice = {**envelope, "signatures": [first, {**first, "keyid": "e" * 64}]}
    (release / CERTIFICATE).write_text(json.dumps(twice))
    trust = tmp_path / "trust.json"
    shutil.copy(two.trust_path, trust)
    rewrite(trust, lambda t: t["keys"].append({**t["keys"][0], "keyid": "e" * 64}))
    found = refused(release, trust)  # a keyid is its key's digest: no key can be listed under two
    assert (found.code, "trust.json" in found.reason) == (ExitCode.INCOMPLETE, True)
    assert refused(release, two.trust_path).code == ExitCode.UNTRUSTED_KEY
    broken = {**envelope, "signatures": [first, {**second, "sig": first["sig"]}]}
    (release / CERTIFICATE).write_text(json.dumps(broken))
    assert refused(release).code == ExitCode.BAD_SIGNATURE
    two.keyring.rotate("certificate-second")
    (keyid,) = [k["keyid"] for k in json.loads(two.keyring.trust())["keys"] if k["keyid"] == second["keyid"]]
    two.keyring.revoke(keyid)
    later = two.release(tmp_path / "later")
    assert len(verify(later, two.trust_path).keyids) == 2


@pytest.mark.parametrize("role", ["certificate", "release", "log", "receipt"])
@pytest.mark.parametrize("ending", ["rotate", "revoke"])
def test_a_key_replacement_that_was_killed_is_finished_later(tmp_path, role, ending):
    """Between the mark and the new key: whatever comes next destroys the old private key and makes another."""
    keyring = Issuer(tmp_path / "keys").keyring
    old = keyring.path(role).read_bytes()
    (entry,) = [k for k in json.loads(keyring.trust())["keys"] if k["role"] == role]
    keyring._mark(entry["keyid"], "retired_at" if ending == "rotate" else "revoked_at", dt.datetime.now(dt.UTC))
    assert keyring.path(role).read_bytes() == old
    keyring.create()
    assert keyring.path(role).read_bytes() != old
    keyring.path(role).unlink()
    keyring.rotate(role)
    assert len([k for k in json.loads(keyring.trust())["keys"] if k["role"] == role]) == 4
    for wrong in ("kek", "certificate-nobody", "trust"):
        with pytest.raises(NoSuchKey):
            keyring.rotate(wrong)
    with pytest.raises(NoSuchKey):
        keyring.revoke("0" * 64)


def test_a_retired_key_counts_for_what_the_log_had_before(tmp_path):
    """After rotation the old release is still good; a record made with the old key afterwards is not, however dated."""
    issuer = Issuer(tmp_path / "keys")
    release = issuer.release(tmp_path / "release")
    old = issuer.keyring.path("certificate").read_bytes()
    for role in ("certificate", "release", "log"):
        issuer.keyring.rotate(role)
    verify(release, issuer.trust_path)
    issuer.at += dt.timedelta(seconds=1)
    assert issuer.keyring.path("certificate").read_bytes() != old
    newer = issuer.release(tmp_path / "newer")
    verify(newer, issuer.trust_path)
    given = tmp_path / "trust.json"
    shutil.copy(issuer.trust_path, given)
    issuer.keyring.path("certificate").write_bytes(old)  # a thief, who has the log's ear, but not its clock
    late = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    for name, issued, reason in (
        ("late", late, "the certificate key was not valid"),
        ("dated back", issuer.at - dt.timedelta(days=1), "not close to the time of its log entry"),
        ("dated forward", late + dt.timedelta(hours=1), "not close to the time of its log entry"),
    ):  # fmt: skip
        logged, issuer.at = issuer.at, late
        found = refused(
            issuer.release(tmp_path / name, issued_at=issued - dt.timedelta(days=name == "dated back")), given
        )
        issuer.at = logged
        assert (found.code, reason in found.reason) == (ExitCode.UNTRUSTED_KEY, True), (name, found.reason)


def test_a_log_key_does_not_count_after_it_was_retired(tmp_path):
    """Who has the old one cannot take a record into the log that has gone on with another."""
    issuer = Issuer(tmp_path / "keys")
    old = issuer.keyring.path("log").read_bytes()
    issuer.keyring.rotate("log")
    given = shutil.copy(issuer.trust_path, tmp_path / "trust.json")
    issuer.keyring.path("log").write_bytes(old)
    issuer.at = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    found = refused(issuer.release(tmp_path / "late"), Path(given))
    assert (found.code, found.reason) == (
        ExitCode.UNTRUSTED_KEY,
        "the log key was not valid when the certificate was logged",
    )


def test_a_key_does_not_count_before_it_was_made(tmp_path):
    """A record dated and logged before its keys existed."""
    issuer = Issuer(tmp_path / "keys")
    issuer.at -= dt.timedelta(days=1)
    assert "was not valid" in refused(issuer.release(tmp_path / "release")).reason


def test_a_revoked_key_counts_for_nothing(tmp_path):
    """Not even for what it signed before: dating back is what a thief would do."""
    issuer = Issuer(tmp_path / "keys")
    release = issuer.release(tmp_path / "release")
    (keyid,) = verify(release).keyids
    issuer.keyring.revoke(keyid)
    assert refused(release, issuer.trust_path).code == ExitCode.UNTRUSTED_KEY
    verify(issuer.release(tmp_path / "newer"), issuer.trust_path)


def test_the_certificate_of_another_version_does_not_fit(tmp_path, release, issuer):
    """Certificate of one release on the files of another."""
    other = issuer.release(tmp_path / "other")
    for name in (CERTIFICATE, PROOF):
        shutil.copy(other / name, release / name)
    assert refused(release).code == ExitCode.ARTEFACT_MISMATCH


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.replace(b'"overall":"PASS"', b'"overall":"PASS","overall":"PASS"'), "twice"),
        (lambda d: d.replace(b'"epochs":2', b'"epochs":NaN'), "NaN"),
        (lambda d: d.replace(b'"epochs":2', b'"epochs": 2'), "canonical"),
        (lambda d: d.replace(b'"epochs":2', b'"epochs":2.0'), "canonical"),
        (lambda d: d.replace(b'"epochs":2', b'"epochs":2.5'), "epochs"),
        (lambda d: d.replace(b"urn:unlearnd:record:v1", b"urn:something:else:v1"), "another kind"),
        (lambda d: d.replace(b"in-toto.io/Statement/v1", b"in-toto.io/Statement/v2"), "not an in-toto statement"),
        (lambda d: b"not json", "not JSON"),
        (lambda d: b"[]", "not an in-toto statement"),
        (lambda d: dumps({"_type": "https://in-toto.io/Statement/v1", "subject": []}), "another kind"),
        (lambda d: d.replace(b'"schema":"', b'"schema":"0'), "does not know"),
        (lambda d: d.replace(b'"training":', b'"zz":"a free text","training":', 1), "canonical"),
    ],
)  # fmt: skip
def test_signed_nonsense_is_malformed(release, issuer, change, reason):
    """A trusted signature does not make duplicate keys, NaN, spaces or another predicate right."""
    found = refused(issuer.again(release, change))
    assert (found.code, reason in found.reason) == (ExitCode.MALFORMED, True), found.reason


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("note",), "free text", "predicate"),
        (("requests", 0, "ma"), "0.312000", "predicate/requests/0"),
        (("requests", 0, "ref"), "Maria", "predicate/requests/0/ref"),
        (("verification", "limits", "ma"), 0.4, "predicate/verification/limits/ma"),
        (("forget_set", "records"), "3", "predicate/forget_set/records"),
        (("lineage", "model"), "two words", "predicate/lineage/model"),
        (("environment", "device"), "host 7", None),
    ],
)
def test_nothing_else_may_stand_in_a_record(release, issuer, path, value, place):
    """The schema is closed: a field more, or a number where a digest belongs, is malformed; values are not repeated."""
    issuer.changed(release, *path, to=value)
    if place is None:
        verify(release)
        return
    found = refused(release)
    assert (found.code, place in found.reason) == (ExitCode.MALFORMED, True), found.reason
    assert str(value) not in found.reason


def test_subjects_are_listed_once_and_at_all(release, issuer):
    """A statement about no file, or about one twice, is none."""
    statement = json.loads(release_payload(release))
    for subject in ([], [*statement["subject"], statement["subject"][0]]):
        issuer.certify(release, dumps({**statement, "subject": subject}))
        assert "no file, or lists a file twice" in refused(release).reason


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "model/../trust.json"])
def test_a_path_that_leads_elsewhere_is_no_file_of_the_folder(release, issuer, name):
    """Whatever lies there: paths are compared with what the folder holds, not opened."""
    (release.parent / "outside").write_text("x")
    statement = json.loads(release_payload(release))
    statement["subject"].append({"name": name, "digest": {"sha256": hashlib.sha256(b"x").hexdigest()}})
    found = refused(issuer.certify(release, dumps(statement)))
    assert (found.code, "is missing" in found.reason) == (ExitCode.ARTEFACT_MISMATCH, True)


FAILED = RequestLine("d" * 32, b"\2" * 32, "FAIL", "criterion_missed")
POLICY_FAILURES = {
    "a request failed": ({"requests": [*LINES, FAILED]}, "did not pass"),
    "a request was not tested": (
        {"requests": [*LINES, RequestLine("d" * 32, b"\2" * 32, "NOT_TESTED", None)]}, "did not pass",
    ),
    "no request": ({"requests": []}, "no request"),
    "MA over the limit": ({"report": {**REPORT, "after": {"el": 0.0, "ma": 0.41}}}, "mean MA"),
    "EL over the limit": ({"report": {**REPORT, "after": {"el": 0.02, "ma": 0.3}}}, "mean EL"),
    "a limit over every threshold": ({"report": {**REPORT, "limits": {"el": 0.01, "ma": 0.400001}}}, "every threshold"),
    "over budget": (
        {
            "report": {
                **REPORT,
                "utility": {**REPORT["utility"], "heldout_ratio": 1.100001, "heldout_perplexity_after": 9.900009},
            }
        },
        "is over",
    ),
    "an earlier request came back": (
        {"report": {**REPORT, "earlier": {"requests": 2, "regressed": ["e" * 32]}}}, "came back",
    ),
    "another budget": (
        {"report": {**REPORT, "utility": {**REPORT["utility"], "max_ratio": 1.2}}}, "budget is not the policy's",
    ),
    "a ratio of other perplexities": (
        {"report": {**REPORT, "utility": {**REPORT["utility"], "heldout_perplexity_after": 9.9}}}, "does not follow from",
    ),
    "not within its budget": (
        {"report": {**REPORT, "utility": {**REPORT["utility"], "within_budget": False}}}, "perplexity ratio",
    ),
    "nobody was trained on": (
        {"requests": [RequestLine(r.ref, r.commitment, "PASS", NOT_MEMORISED) for r in LINES]},
        "nothing was trained on",
    ),
    "no epoch": ({"report": {**REPORT, "epochs": 0}}, "nothing was trained on"),
    "not published": ({"published": False}, "not published"),
    "overall FAIL": ({"overall": "FAIL"}, "overall"),
    "no thresholds": ({"report": {**REPORT, "thresholds": []}}, "no thresholds"),
    "a version is skipped": ({"lineage": {**LINEAGE, "version": 3}}, "broken lineage"),
    "another is superseded": ({"lineage": {**LINEAGE, "supersedes": 1}}, "broken lineage"),
    "a parent without a certificate": (
        {"lineage": {**LINEAGE, "version": 2, "parent_version": 1, "supersedes": 1}}, "broken lineage",
    ),
    "a registered parent with one": ({"lineage": {**LINEAGE, "parent_certificate": "a" * 64}}, "broken lineage"),
    "no utility": ({"report": {**REPORT, "utility": None}}, "lacks a result"),
    "no after": ({"report": {**REPORT, "after": None}}, "was not run"),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICY_FAILURES)
def test_overall_is_recomputed(tmp_path, issuer, name):
    """PASS is believed only if the numbers and verdicts add up to it."""
    changes, reason = POLICY_FAILURES[name]
    found = refused(issuer.release(tmp_path / "r", **changes))
    assert (found.code, reason in found.reason) == (ExitCode.POLICY_FAILURE, True), found.reason


def test_exactly_at_the_limit_passes(tmp_path, issuer):
    """At or under: the limits are held-out means, and the budget is a maximum."""
    utility = {**REPORT["utility"], "heldout_ratio": 1.1, "heldout_perplexity_after": 9.9}
    verify(issuer.release(tmp_path / "r", report={**REPORT, "after": {"el": 0.01, "ma": 0.4}, "utility": utility}))


def test_another_number_of_requests_is_a_failure(release, issuer):
    """The forget set's count is that of the verdicts."""
    issuer.changed(release, "forget_set", "requests", to=4)
    assert "another number" in refused(release).reason


@pytest.mark.parametrize("change", ["status", "result", "left out"])
def test_a_mandatory_attack_must_have_been_run(release, issuer, change):
    """EL and MA are what the record is about."""
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    wrong = {"status": "NOT_RUN"} if change == "status" else {"result": "FAIL"}
    changed = attacks[1:] if change == "left out" else [{**attacks[0], **wrong}, *attacks[1:]]
    found = refused(issuer.changed(release, "verification", "attacks", to=changed))
    assert (found.code, attacks[0]["name"] in found.reason) == (ExitCode.POLICY_FAILURE, True)


FEW = {
    "two requests": LINES[:2],
    "three, of which one was not memorised": [*LINES[:2], RequestLine("d" * 32, b"\4" * 32, "PASS", NOT_MEMORISED)],
}


@pytest.mark.parametrize("name", FEW)
def test_means_of_few_submitters_are_not_shown(tmp_path, issuer, name):
    """They would be about a person; such a release verifies by its verdicts, and one that tells them does not."""
    release = issuer.release(tmp_path / "r", requests=FEW[name])
    predicate = verify(release).statement["predicate"]
    found = predicate["verification"]
    assert set(found["before"].values()) | set(found["after"].values()) == {"suppressed"}
    assert {e["ma"] for e in predicate["training"]["trajectory"]} == {"suppressed"}
    assert b"0.95" not in release_payload(release)
    original = release_payload(release)
    for path, value in (
        (("verification", "after"), {"el": "0.000000", "ma": "suppressed"}),
        (("verification", "before"), {"el": "suppressed", "ma": "0.950000"}),
        (("training", "trajectory", 0, "ma"), "0.600000"),
    ):
        issuer.certify(release, original)
        found = refused(issuer.changed(release, *path, to=value))
        assert (found.code, "fewer than" in found.reason) == (ExitCode.POLICY_FAILURE, True), path


# The log.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"certificate": "0" * 64}, "this certificate passed"), ({"kind": "job.batched"}, "this certificate passed"),
        ({"overall": "FAIL"}, "this certificate passed"), ({"job": "k"}, "the thresholds of this job"),
    ],
)  # fmt: skip
def test_an_entry_of_another_kind_or_certificate_is_no_proof(release, issuer, changes, reason):
    """The log has to have this certificate, as passed, of the job whose thresholds it had."""
    found = refused(issuer.enter(release, **changes))
    assert (found.code, reason in found.reason) == (ExitCode.LOG_FAILURE, True), found.reason


def test_a_strangers_log_is_not_trusted(tmp_path, release):
    """A proof against a checkpoint that another key signed."""
    Issuer(tmp_path / "other").enter(release)
    found = refused(release)
    assert (found.code, "no trusted key" in found.reason) == (ExitCode.UNTRUSTED_KEY, True)


def with_log(issuer: Issuer, folder: Path, **changes) -> Path:
    """A release whose word of the log is another."""
    return issuer.release(folder, log=issuer.log_of(**changes))


def test_thresholds_that_were_loosened_after_measuring(tmp_path, issuer):
    """They, or any parameter, are not those that the log had before the run."""
    loose = [{**TABLE[0], "ma_mean": 0.6}, TABLE[1]]
    for changes, name in (
        ({"report": {**REPORT, "thresholds": loose}}, "thresholds"),
        ({"parameters": {**POLICY, "max_epochs": 21}}, "parameters"),
    ):
        found = refused(issuer.release(tmp_path / name, **changes))
        assert (found.code, found.reason) == (
            ExitCode.POLICY_FAILURE, f"the {name} differ from those that were fixed before the run",
        )  # fmt: skip


def test_thresholds_must_be_in_the_log_before_the_record(tmp_path, issuer):
    """In this log, of this kind and job, before it; and the checkpoint before the run is the one that the log noted."""
    own = issuer.before_the_run()
    filler = [b"%d" % i for i in range(6)]
    cases = {
        "another log": ({"thresholds": issuer.prove(own, 2, "other/log").dumps()}, "not in the log before"),
        "another name": ({"origin": "other/log"}, "another log"),
        "too late": ({"thresholds": issuer.prove([*filler[:4], own[2]], 4).dumps()}, "not in the log before"),
        "a larger log": ({"thresholds": issuer.prove([*own, *filler], 2).dumps()}, "not in the log before"),
        "another kind": (
            {"thresholds": issuer.prove([*own[:2], issuer.entry("x", job="j")], 2).dumps()},
            "of this job",
        ),
        "another past": ({"before": {"size": 1, "root": "4" * 64}}, "disagree about the size and root of the log"),
        "a cut path": ({"thresholds": "c2sp.org/tlog-proof@v1\n\n"}, None),
    }
    for name, (changes, reason) in cases.items():
        found = refused(with_log(issuer, tmp_path / name, **changes))
        assert found.code in (ExitCode.LOG_FAILURE, ExitCode.MALFORMED), name
        assert reason is None or reason in found.reason, (name, found.reason)
    future = {"size": 3, "root": "4" * 64}
    entries = issuer.before_the_run(before=future)
    changes = {"before": future, "thresholds": issuer.prove(entries, 2).dumps()}
    assert "disagree about the size and root" in refused(with_log(issuer, tmp_path / "future", **changes)).reason


# The model's signature.


def test_a_model_signature_must_be_of_these_files_by_the_release_key(tmp_path, issuer):
    """Of another model, by another key, or not a bundle: certified or not, it is refused."""
    release = issuer.release(tmp_path / "release")
    other = issuer.release(tmp_path / "other")
    stranger = Issuer(tmp_path / "stranger")
    signature = release / MODEL_SIGNATURE
    stranger.keyring.sign_model(release / "model", tmp_path / "foreign.sig")
    typed = json.loads(signature.read_bytes())
    typed["dsseEnvelope"]["payloadType"] = "text/plain"
    for content, code in (
        ((other / MODEL_SIGNATURE).read_bytes(), ExitCode.ARTEFACT_MISMATCH),
        ((tmp_path / "foreign.sig").read_bytes(), ExitCode.UNTRUSTED_KEY),
        (json.dumps(typed).encode(), ExitCode.UNTRUSTED_KEY),
        (b"nonsense", ExitCode.MALFORMED), (b"{}", ExitCode.MALFORMED), (b"[]", ExitCode.MALFORMED),
    ):  # fmt: skip
        signature.write_bytes(content)
        found = refused(issuer.certify_folder(release))
        assert (found.code, MODEL_SIGNATURE in found.reason) == (code, True), found.reason
    signature.unlink()
    assert refused(issuer.certify_folder(release)).code == ExitCode.INCOMPLETE


# Lineage.


def test_the_parents_folder_is_compared_if_it_is_given(tmp_path, issuer):
    """By the digest of its files and of its certificate; version 0 has none."""
    base = tmp_path / "base"
    (base / "model").mkdir(parents=True)
    (base / "model" / "config.json").write_text("{}")
    zero = {**LINEAGE, "parent_manifest": manifest_digest(manifest(base))}
    first = issuer.release(tmp_path / "first", lineage=zero)
    verify(first, parent=base)
    certificate = hashlib.sha256((first / CERTIFICATE).read_bytes()).hexdigest()
    one = {
        **LINEAGE, "version": 2, "parent_version": 1, "supersedes": 1, "parent_certificate": certificate,
        "parent_manifest": manifest_digest(manifest(first)),
    }  # fmt: skip
    second = issuer.release(tmp_path / "second", lineage=one)
    verify(second, parent=first)
    for release, parent in ((first, second), (second, base), (second, tmp_path / "nothing")):
        found = refused(release, parent=parent)
        assert (found.code, "broken lineage" in found.reason) == (ExitCode.POLICY_FAILURE, True)
    other = issuer.release(tmp_path / "other", lineage={**one, "parent_manifest": manifest_digest(manifest(first)),
                                                        "parent_certificate": "a" * 64})  # fmt: skip
    assert refused(other, parent=first).code == ExitCode.POLICY_FAILURE
    flip(first / PROOF, 0)  # another proof of the same record is another folder
    assert refused(second, parent=first).code == ExitCode.POLICY_FAILURE
    flip(first / PROOF, 0)
    (base / "model" / "link").symlink_to("config.json")
    assert "cannot be read" in refused(first, parent=base).reason


# Wording.


@pytest.mark.parametrize("name", ["we guarantee it", "dpo@example.org", "all data ERASED", "a proof  of\nforgetting"])
def test_the_issuer_refuses_and_the_verifier_names_bad_wording(release, issuer, name):
    """The issuer does not write it; the verifier does not accept it from anyone who did, wherever it stands."""
    with pytest.raises(WordingRefused):
        issuer.payload(manifest(release), issuer=name)
    original = release_payload(release)
    for place in (("issuer",), ("note",), ("method", "parameters", name)):
        issuer.certify(release, original)
        assert refused(issuer.changed(release, *place, to=name)).code == ExitCode.POLICY_FAILURE


def test_the_issuer_refuses_what_would_not_fit_the_schema(release, issuer):
    """A float in the lineage is caught before it is signed."""
    with pytest.raises(WordingRefused, match="lineage"):
        issuer.payload(manifest(release), lineage={**LINEAGE, "version": 1.5})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("path", ["model", "model/config.json", CERTIFICATE, PROOF])
def test_what_cannot_be_read_is_named(release, path):
    """Not a traceback, and not passed over."""
    (release / path).chmod(0)
    try:
        found = refused(release)
    finally:
        (release / path).chmod(0o755)
    assert found.code in (ExitCode.ARTEFACT_MISMATCH, ExitCode.INCOMPLETE)
    assert Path(path).name in found.reason


def test_a_disk_that_fails_is_named(release, monkeypatch):
    """The same where reading a file or a folder breaks off."""

    def broken(root, paths):
        raise OSError(5, "Input/output error", str(root / paths[0]))

    monkeypatch.setattr("service.audit.verify.file_entries", broken)
    found = refused(release)
    assert (found.code, found.reason) == (ExitCode.ARTEFACT_MISMATCH, "model.sig cannot be read (Input/output error)")
