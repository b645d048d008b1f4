"""What the log says of a release later: withdrawn, superseded, or not in it."""

import base64
import datetime as dt
import hashlib
import json

import pytest

from service.audit.canonical import dumps
from service.audit.checkpoint import Checkpoint, Proof, sign_checkpoint
from service.audit.merkle import leaf_hash, root
from service.audit.standing import check_standing
from service.audit.verification import CERTIFICATE, ExitCode, VerificationError
from service.audit.verify import PROOF, verify
from tests.issuer import LINEAGE, ORIGIN, Issuer

pytestmark = pytest.mark.usefixtures("no_network")


def batched(job: str, model: str = "m") -> bytes:
    """A job of a model."""
    return dumps({"kind": "job.batched", "job": job, "model": model, "refs": []})


def certified(job: str, certificate: str) -> bytes:
    """A job with its certificate."""
    return dumps({"kind": "job.certified", "job": job, "certificate": certificate, "overall": "PASS"})


def version(kind: str, number: object, certificate: str, **more) -> bytes:
    """An entry about a version, whose manifest is named after its certificate."""
    fields = {"job": "any", "number": number, "manifest": f"manifest of {certificate}", "certificate": certificate}
    return dumps({"kind": f"version.{kind}", **fields, **more})


def withdrawn(certificate: str, reason: str = "faulty") -> bytes:
    """The withdrawal of a version."""
    manifest = f"manifest of {certificate}"
    return dumps({"kind": "version.withdrawn", "number": 1, "manifest": manifest, "reason": reason, "reopened": []})


def later(number: int, model: str = "m", kind: str = "published") -> list[bytes]:
    """All entries of another version, under a certificate of its number."""
    return [
        batched(f"j{number}", model),
        certified(f"j{number}", f"c{number}"),
        version(kind, number, f"c{number}"),
    ]


class Case:
    """A release, and the log that holds it."""

    def __init__(self, issuer: Issuer, folder, **changes) -> None:
        """Make a release of version 1."""
        self.issuer, self.folder = issuer, folder
        self.release = issuer.release(folder / "release", **changes)
        self.certificate = hashlib.sha256((self.release / CERTIFICATE).read_bytes()).hexdigest()
        entry = Proof.loads((self.release / PROOF).read_text()).entry
        self.logged = [*issuer.before_the_run(), batched("j"), entry, b"2"]
        (self.release / PROOF).write_text(issuer.prove(self.logged, 4).dumps())

    def export(self, entries: list[bytes], origin: str = ORIGIN):
        """Write an export of these entries."""
        leaves = [leaf_hash(entry) for entry in entries]
        note = sign_checkpoint(Checkpoint(origin, len(leaves), root(leaves)), self.issuer.keyring.private("log"))
        lines = [{"index": i, "entry": base64.b64encode(e).decode()} for i, e in enumerate(entries)]
        path = self.folder / "log.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in [{"checkpoint": note}, *lines]))
        return path

    def published(self, *more: bytes):
        """An export in which the version was published, and more after that."""
        return self.export([*self.logged, version("published", 1, self.certificate), *more])

    def standing(self, export, **options):
        """What the log says."""
        return check_standing(export, verify(self.release, self.issuer.trust_path), **options)

    def refused(self, export) -> VerificationError:
        """What is said of a release that does not stand."""
        with pytest.raises(VerificationError) as caught:
            self.standing(export)
        return caught.value


@pytest.fixture
def case(issuer, tmp_path) -> Case:
    """A release of version 1, and the log that holds it."""
    return Case(issuer, tmp_path)


def test_a_version_that_is_the_newest_stands(case):
    """Published or adopted, also with the folder's own keys, whose expiry does not count."""
    standing = case.standing(case.published())
    assert (standing.superseded_by, standing.overdue) == (None, None)
    adopted = case.export([*case.logged, version("adopted", 1, case.certificate)])
    assert case.standing(adopted).superseded_by is None
    assert check_standing(adopted, verify(case.release)).superseded_by is None


def test_a_withdrawn_version_is_refused(case):
    """With the reason of the log, and whatever proof lies beside the certificate."""
    export = case.published(withdrawn(case.certificate, "revoked"))
    refusal = case.refused(export)
    assert (refusal.code, refusal.reason) == (ExitCode.POLICY_FAILURE, "this version was withdrawn (revoked)")
    (case.release / PROOF).write_text(case.issuer.prove([*case.logged, b"3"][:6], 4).dumps())
    assert case.refused(export).code == ExitCode.POLICY_FAILURE


def test_a_version_that_is_adopted_again_stays_withdrawn(case):
    """A restore repeats the version after its withdrawal."""
    again = version("adopted", 1, case.certificate)
    assert case.refused(case.published(withdrawn(case.certificate), again)).code == ExitCode.POLICY_FAILURE


@pytest.mark.parametrize(
    ("more", "newest"),
    [
        (later(2), 2),
        (later(2, kind="adopted"), 2),
        ([*later(3), *later(2)], 3),
        ([*later(2), *later(3), withdrawn("c3")], 2),
        ([*later(2), withdrawn("c2")], None),
        (later(2, model="another"), None),
        (later(0), None),
        (later(1), None),
        ([version("published", 2, "nobody's")], None),
        ([batched("j2"), certified("j2", "c2")], None),
    ],
)  # fmt: skip
def test_a_later_version_of_the_same_model_supersedes(case, more, newest):
    """The newest that stands is named; withdrawn ones, another model's and unpublished ones do not count."""
    assert case.standing(case.published(*more)).superseded_by == newest


def test_overdue_requests_of_others_are_told_and_stop_nothing(case):
    """They are no fault of this release."""
    overdue = dumps({"kind": "request.accepted", "ref": "a", "due": "2026-03-01"})
    export = case.published(overdue)
    assert case.standing(export, today=dt.date(2026, 3, 1)).overdue is None
    said = case.standing(export, today=dt.date(2026, 3, 2)).overdue
    assert said == "1 accepted requests are past their deadline and have no end in the log; the first is a"


def test_a_release_that_is_not_in_the_log_is_refused(case, tmp_path, issuer):
    """An export from before, another past, another log, a version that was never published, a stranger's log."""
    other = [*case.logged[:4], certified("j", "another"), b"2", version("published", 1, case.certificate)]
    named = [*case.logged, version("published", 1, case.certificate)]
    for entries, origin, reason in (
        (case.logged[:5], ORIGIN, "the exported log is older than the release"),
        (other, ORIGIN, "EQUIVOCATION"),
        (named, "other/log", "belongs to the log"),
        (case.logged, ORIGIN, "the log has no version with the release's certificate"),
        ([*case.logged, *later(2)], ORIGIN, "the log has no version with the release's certificate"),
    ):
        refusal = case.refused(case.export(entries, origin))
        assert (refusal.code, reason in refusal.reason) == (ExitCode.LOG_FAILURE, True), refusal.reason
    stranger = Case(Issuer(tmp_path / "stranger"), tmp_path / "theirs")
    assert case.refused(stranger.published()).code == ExitCode.UNTRUSTED_KEY


@pytest.mark.parametrize(
    "entry",
    [
        b"x",
        b"[]",
        b"{}",
        dumps({"kind": "version.published"}),
        version("published", "2", "c2"),
        version("published", True, "c2"),
        version("published", 2, "c2", manifest=[]),
        dumps({"kind": "version.withdrawn", "manifest": {}, "reason": "faulty"}),
        dumps({"kind": "job.batched", "job": "j2", "model": ["m"]}),
        dumps({"kind": "job.certified", "job": "j2", "certificate": 1}),
    ],
)
def test_an_entry_that_cannot_be_read_says_nothing(case, entry):
    """What comes behind it counts."""
    known = [batched("j2"), certified("j2", "c2")]
    assert case.standing(case.published(*known, entry)).superseded_by is None
    assert case.standing(case.published(*known, entry, version("published", 2, "c2"))).superseded_by == 2
    refusal = case.refused(case.published(entry, withdrawn(case.certificate)))
    assert refusal.code == ExitCode.POLICY_FAILURE


def test_the_model_is_the_certificates(tmp_path, issuer):
    """A later version of the model that the lineage names counts, whichever job made this release."""
    case = Case(issuer, tmp_path / "n", lineage={**LINEAGE, "model": "n"})
    assert case.standing(case.published(*later(2))).superseded_by is None
    assert case.standing(case.published(*later(2, model="n"))).superseded_by == 2
