"""The verifier: a valid release, and every tampering that it must name."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from service.audit.canonical import dumps
from service.audit.certificate import RequestLine
from service.audit.manifest import manifest, manifest_digest
from service.audit.verification import CERTIFICATE, ExitCode
from service.audit.verify import MODEL_SIGNATURE, PROOF, STEPS, verify
from tests.issuer import LINEAGE, LINES, Issuer, release_payload
from tests.service.audit.releases import refused, rewrite
from tests.service.audit.tamperings import TAMPERINGS, flip, repay

pytestmark = pytest.mark.usefixtures("no_network")


def test_a_valid_release_verifies(release, issuer):
    """Every step is told in order; with the folder's own trust it shows integrity, with a given one origin."""
    steps = []
    verified = verify(release, passed=steps.append)
    assert tuple(steps) == STEPS
    assert verified.own_trust
    assert not verify(release, issuer.trust_path).own_trust
    assert verified.statement["predicate"]["overall"] == "PASS"
    assert verified.checkpoint.size == 6
    trust = json.loads(issuer.keyring.trust())
    assert verified.keyids == [k["keyid"] for k in trust["keys"] if k["role"] == "certificate"]


@pytest.mark.parametrize("name", TAMPERINGS)
def test_every_tampering_is_named(release, name):
    """One thing changed: the code and the reason say what."""
    change, code, reason = TAMPERINGS[name]
    change(release)
    refusal = refused(release)
    assert refusal.code == code, refusal.reason
    assert reason in refusal.reason


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
)
def test_signed_nonsense_is_malformed(release, issuer, change, reason):
    """A trusted signature does not make duplicate keys, NaN, spaces or another predicate right."""
    refusal = refused(issuer.again(release, change))
    assert (refusal.code, reason in refusal.reason) == (ExitCode.MALFORMED, True), refusal.reason


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
    refusal = refused(release)
    assert (refusal.code, place in refusal.reason) == (ExitCode.MALFORMED, True), refusal.reason
    assert str(value) not in refusal.reason


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
    refusal = refused(issuer.certify(release, dumps(statement)))
    assert (refusal.code, "is missing" in refusal.reason) == (ExitCode.ARTEFACT_MISMATCH, True)


# The log.
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"certificate": "0" * 64}, "this certificate passed"),
        ({"kind": "job.batched"}, "this certificate passed"),
        ({"overall": "FAIL"}, "this certificate passed"),
        ({"job": "k"}, "the thresholds of this job"),
    ],
)
def test_an_entry_of_another_kind_or_certificate_is_no_proof(release, issuer, changes, reason):
    """The log has to have this certificate, as passed, of the job whose thresholds it had."""
    refusal = refused(issuer.enter(release, **changes))
    assert (refusal.code, reason in refusal.reason) == (ExitCode.LOG_FAILURE, True), refusal.reason


def test_a_strangers_log_is_not_trusted(tmp_path, release):
    """A proof against a checkpoint that another key signed."""
    Issuer(tmp_path / "other").enter(release)
    refusal = refused(release)
    assert (refusal.code, "no trusted key" in refusal.reason) == (ExitCode.UNTRUSTED_KEY, True)


def with_log(issuer: Issuer, folder: Path, **changes) -> Path:
    """A release whose word of the log is another."""
    return issuer.release(folder, log=issuer.log_section(**changes))


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
        refusal = refused(with_log(issuer, tmp_path / name, **changes))
        assert refusal.code in (ExitCode.LOG_FAILURE, ExitCode.MALFORMED), name
        assert reason is None or reason in refusal.reason, (name, refusal.reason)
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
        (b"nonsense", ExitCode.MALFORMED),
        (b"{}", ExitCode.MALFORMED),
        (b"[]", ExitCode.MALFORMED),
    ):
        signature.write_bytes(content)
        refusal = refused(issuer.certify_folder(release))
        assert (refusal.code, MODEL_SIGNATURE in refusal.reason) == (code, True), refusal.reason
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
        **LINEAGE,
        "version": 2,
        "parent_version": 1,
        "supersedes": 1,
        "parent_certificate": certificate,
        "parent_manifest": manifest_digest(manifest(first)),
    }
    second = issuer.release(tmp_path / "second", lineage=one)
    verify(second, parent=first)
    for release, parent in ((first, second), (second, base), (second, tmp_path / "nothing")):
        refusal = refused(release, parent=parent)
        assert (refusal.code, "broken lineage" in refusal.reason) == (ExitCode.POLICY_FAILURE, True)
    other = issuer.release(
        tmp_path / "other",
        lineage={**one, "parent_manifest": manifest_digest(manifest(first)), "parent_certificate": "a" * 64},
    )
    assert refused(other, parent=first).code == ExitCode.POLICY_FAILURE
    flip(first / PROOF, 0)  # another proof of the same record is another folder
    assert refused(second, parent=first).code == ExitCode.POLICY_FAILURE
    flip(first / PROOF, 0)
    (base / "model" / "link").symlink_to("config.json")
    assert "cannot be read" in refused(first, parent=base).reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("path", ["model", "model/config.json", CERTIFICATE, PROOF])
def test_what_cannot_be_read_is_named(release, path):
    """Not a traceback, and not passed over."""
    (release / path).chmod(0)
    try:
        refusal = refused(release)
    finally:
        (release / path).chmod(0o755)
    assert refusal.code in (ExitCode.ARTEFACT_MISMATCH, ExitCode.INCOMPLETE)
    assert Path(path).name in refusal.reason


def test_a_disk_that_fails_is_named(release, monkeypatch):
    """The same where reading a file or a folder breaks off."""

    def broken(root, paths):
        raise OSError(5, "Input/output error", str(root / paths[0]))

    monkeypatch.setattr("service.audit.verify.file_entries", broken)
    refusal = refused(release)
    assert (refusal.code, refusal.reason) == (
        ExitCode.ARTEFACT_MISMATCH,
        "model.sig cannot be read (Input/output error)",
    )
