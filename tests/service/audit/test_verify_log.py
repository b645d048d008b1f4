"""An exported log: every way to change it, and every promise that it shows unkept."""

import base64
import datetime as dt
import json

import pytest

from service.audit.canonical import dumps
from service.audit.checkpoint import Checkpoint, Proof, sign_checkpoint
from service.audit.lost_entries import still_open
from service.audit.merkle import leaf_hash, root
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify_log import verify_log
from tests.issuer import ORIGIN, Issuer

pytestmark = pytest.mark.usefixtures("no_network")
DUE = dt.date(2026, 3, 1)


def accepted(ref: str) -> bytes:
    """An accepted request, due on the day."""
    return dumps({"kind": "request.accepted", "ref": ref, "due": DUE.isoformat()})


def batched(job: str, *refs: str) -> bytes:
    """Requests that a job took up."""
    return dumps({"kind": "job.batched", "job": job, "refs": list(refs)})


def joined(job: str, *refs: str) -> bytes:
    """Requests that the job took in later."""
    return dumps({"kind": "job.joined", "job": job, "refs": list(refs)})


def certified(job: str) -> bytes:
    """A job with its record."""
    return dumps({"kind": "job.certified", "job": job})


def failed(job: str, *refs: str) -> bytes:
    """A job with its record, which published nothing, and the requests that it failed."""
    return dumps({"kind": "job.certified", "job": job, "overall": "FAIL", "failed": list(refs)})


ENTRIES = [dumps({"kind": "model.registered"}), accepted("a"), accepted("b"), batched("j", "a", "b"), certified("j")]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    """Who keeps the log."""
    return Issuer(tmp_path_factory.mktemp("keys"))


def signed_note(issuer, entries, origin=ORIGIN) -> str:
    """A signed checkpoint over these entries."""
    leaves = [leaf_hash(e) for e in entries]
    return sign_checkpoint(Checkpoint(origin, len(leaves), root(leaves)), issuer.keyring.private("log"))


def export_lines(issuer, entries, origin=ORIGIN) -> list[str]:
    """The lines of an export."""
    entry_lines = [json.dumps({"index": i, "entry": base64.b64encode(e).decode()}) for i, e in enumerate(entries)]
    return [json.dumps({"checkpoint": signed_note(issuer, entries, origin)}), *entry_lines]


@pytest.fixture
def export(issuer, tmp_path):
    """Write an export, or a checkpoint; returns its path."""

    def write(entries=ENTRIES, name="log.jsonl", origin=ORIGIN, change=lambda lines: lines):
        path = tmp_path / name
        path.write_text("\n".join(change(export_lines(issuer, entries, origin))) + "\n")
        return path

    return write


def refused(*arguments, **options) -> VerificationError:
    """What is said of a log that is not taken."""
    with pytest.raises(VerificationError) as caught:
        verify_log(*arguments, **options)
    return caught.value


def test_a_whole_log_verifies(export, issuer, tmp_path):
    """Alone, with a checkpoint of before, with an export of before, and with itself."""
    path = export()
    assert verify_log(path, issuer.trust_path).requests == 2
    kept = tmp_path / "kept"
    kept.write_text(signed_note(issuer, ENTRIES[:3]))
    for older in (kept, export(ENTRIES[:2], "older.jsonl"), path):
        assert verify_log(path, issuer.trust_path, older).checkpoint.size == 5
    proof = Proof(ENTRIES[1], 1, [], signed_note(issuer, ENTRIES[:2])).dumps()
    receipt = json.loads(issuer.keyring.sign("receipt", dumps({"checkpoint": signed_note(issuer, ENTRIES[:4])}), "x"))
    for content, size in ((proof, 2), (json.dumps(receipt), 4), (json.dumps({"receipt": {"signed": receipt}}), 4)):
        kept.write_text(content)
        assert verify_log(path, issuer.trust_path, kept).checkpoint.size == 5
        with pytest.raises(VerificationError, match=f"smaller: {size}, now 1"):
            verify_log(export(ENTRIES[:1], "one.jsonl"), issuer.trust_path, kept)
    empty = export([], "empty.jsonl")
    assert verify_log(empty, issuer.trust_path).requests == 0
    assert verify_log(path, issuer.trust_path, empty).checkpoint.size == 5


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda x: x[:-1], ExitCode.LOG_FAILURE, "the entries do not match the checkpoint"),
        (lambda x: [*x, x[-1].replace(": 4", ": 5")], ExitCode.LOG_FAILURE, "the entries do not match"),
        (lambda x: [*x[:-1], x[-2].replace(": 3", ": 4")], ExitCode.LOG_FAILURE, "the entries do not match"),
        (lambda x: [x[0], x[2], x[1], *x[3:]], ExitCode.MALFORMED, "log.jsonl is not an exported log"),
        (lambda x: x[:1] + x[2:], ExitCode.MALFORMED, "not an exported log"),
        (lambda x: x[1:], ExitCode.MALFORMED, "not an exported log"),
        (lambda x: ["{}", *x[1:]], ExitCode.MALFORMED, "not an exported log"),
        (lambda x: [""], ExitCode.MALFORMED, "not an exported log"),
        (lambda x: ["[1]"], ExitCode.MALFORMED, "not an exported log"),
        (lambda x: [*x[:-1], x[-1].replace('"entry": "', '"entry": "@')], ExitCode.MALFORMED, "not an exported log"),
        (lambda x: [x[0].replace("\\n5\\n", "\\n4\\n"), *x[1:]], ExitCode.LOG_FAILURE, "signature"),
        (lambda x: ['{"checkpoint": "x"}', *x[1:]], ExitCode.LOG_FAILURE, "not a checkpoint"),
        (lambda x: [x[0].replace("test/log", "evil/log"), *x[1:]], ExitCode.UNTRUSTED_KEY, "no trusted key"),
    ],
)  # fmt: skip
def test_a_changed_export_is_named(export, issuer, change, code, reason):
    """Cut, longer, a repeated entry, another order, no checkpoint, nonsense."""
    refusal = refused(export(change=change), issuer.trust_path)
    assert (refusal.code, reason in refusal.reason) == (code, True), refusal.reason


def test_an_older_checkpoint_binds(export, issuer, tmp_path):
    """A smaller log, another name, or another past of the same size: with both roots."""
    path = export()
    larger = export([*ENTRIES, accepted("c")], "larger.jsonl")
    refusal = refused(path, issuer.trust_path, larger)
    assert (refusal.code, refusal.reason) == (ExitCode.LOG_FAILURE, "the log has become smaller: 6, now 5")
    other = export(ENTRIES[:2], "other.jsonl", "other/log")
    assert refused(path, issuer.trust_path, other).reason == "the older checkpoint belongs to the log other/log"
    fork = [ENTRIES[0], accepted("x"), *ENTRIES[2:3]]
    refusal = refused(path, issuer.trust_path, export(fork, "fork.jsonl"))
    assert refusal.code == ExitCode.LOG_FAILURE
    assert "EQUIVOCATION: two logs of size 3" in refusal.reason
    for entries in (fork, ENTRIES[:3]):
        assert base64.b64encode(root([leaf_hash(e) for e in entries])).decode() in refusal.reason
    assert refused(path, issuer.trust_path, tmp_path / "nothing").reason == "nothing holds no checkpoint"
    (tmp_path / "nonsense").write_text("nonsense")
    assert refused(path, issuer.trust_path, tmp_path / "nonsense").code == ExitCode.LOG_FAILURE
    (tmp_path / "nonsense").write_text("{nonsense")
    assert refused(path, issuer.trust_path, tmp_path / "nonsense").code == ExitCode.MALFORMED


def test_keys_that_do_not_count(export, issuer, tmp_path):
    """A stranger's log, a trust.json without a log key, or none."""
    stranger = Issuer(tmp_path / "stranger")
    assert refused(export(), stranger.trust_path).code == ExitCode.UNTRUSTED_KEY
    trust = json.loads(issuer.keyring.trust())
    trust["keys"] = [k for k in trust["keys"] if k["role"] != "log"]
    (tmp_path / "trust.json").write_text(json.dumps(trust))
    refusal = refused(export(), tmp_path / "trust.json")
    assert (refusal.code, refusal.reason) == (ExitCode.UNTRUSTED_KEY, "trust.json names no log key")
    assert refused(export(), tmp_path / "nothing").code == ExitCode.INCOMPLETE
    assert refused(tmp_path / "nothing", issuer.trust_path).code == ExitCode.MALFORMED


ENDS = {
    "a record": [batched("j", "a"), certified("j")],
    "cancelled": [dumps({"kind": "request.cancelled", "ref": "a"})],
    "rejected": [dumps({"kind": "requests.rejected", "refs": ["x", "a"]})],
    "rejected by a job that was given up": [
        batched("j", "x", "a"),
        dumps({"kind": "requests.rejected", "job": "j", "refs": ["a"]}),
        dumps({"kind": "job.quarantined", "job": "j"}),
    ],
    "failed and resolved": [batched("j", "a"), failed("j", "a"), dumps({"kind": "request.closed", "ref": "a"})],
    "another of its job failed": [
        accepted("b"),
        batched("j", "a", "b"),
        failed("j", "b"),
        dumps({"kind": "request.closed", "ref": "b"}),
    ],
}
NO_ENDS = {
    "nothing": [],
    "batched alone": [batched("j", "a")],
    "a record of another job": [batched("j", "a"), certified("k")],
    "another cancelled": [dumps({"kind": "request.cancelled", "ref": "b"})],
    "another rejected": [dumps({"kind": "requests.rejected", "refs": ["b"]})],
    "a record of a job that was given up": [
        batched("j", "a"),
        certified("j"),
        dumps({"kind": "job.quarantined", "job": "j"}),
    ],
    "extended to the same day": [dumps({"kind": "request.extended", "ref": "a", "due": DUE.isoformat()})],
    "failed": [batched("j", "a"), failed("j", "a")],
    "failed and another resolved": [
        batched("j", "a"),
        failed("j", "a"),
        dumps({"kind": "request.closed", "ref": "b"}),
    ],
    "tried again after its record": [batched("j", "a"), certified("j"), dumps({"kind": "request.retried", "ref": "a"})],
    "put off by a job with a record": [
        batched("j", "a"),
        dumps({"kind": "job.split", "job": "j", "reopened": ["a"]}),
        certified("j"),
    ],
    "something else": [dumps({"kind": "request.purged", "ref": "a"})],
}


@pytest.mark.parametrize("name", [*ENDS, *NO_ENDS])
def test_a_promise_is_kept_by_its_day_or_named(export, issuer, name):
    """A record, a cancellation or a rejection keeps it; on the day itself there is time still."""
    path = export([accepted("a"), *{**ENDS, **NO_ENDS}[name]])
    after = DUE + dt.timedelta(days=1)
    verify_log(path, issuer.trust_path, today=DUE)
    if name in ENDS:
        verify_log(path, issuer.trust_path, today=after)
        verify_log(path, issuer.trust_path)
        return
    for today in (after, None):
        refusal = refused(path, issuer.trust_path, today=today)
        assert refusal.code == ExitCode.INCOMPLETE
        assert (
            refusal.reason == "1 accepted requests are past their deadline and have no end in the log; the first is a"
        )


def test_an_extended_promise_has_until_its_new_day(export, issuer):
    """Extended, retried and given up: the later day stands; one that was kept stays kept."""
    later = DUE + dt.timedelta(days=60)
    extension = dumps({"kind": "request.extended", "ref": "a", "due": later.isoformat()})
    for more in (
        [],
        [batched("j", "a"), certified("j"), dumps({"kind": "job.quarantined", "job": "j"})],
        [batched("j", "a"), certified("j"), dumps({"kind": "requests.reopened", "refs": ["a"]})],
        [batched("j", "a"), certified("j"), dumps({"kind": "version.rechecked", "reopened": ["a"]})],
        [dumps({"kind": "request.retried", "ref": "a"})],
    ):
        path = export([accepted("a"), extension, *more])
        verify_log(path, issuer.trust_path, today=later)
        assert refused(path, issuer.trust_path, today=later + dt.timedelta(days=1)).code == ExitCode.INCOMPLETE
    verify_log(export([accepted("a"), batched("j", "a"), certified("j"), extension]), issuer.trust_path)


def test_the_first_of_many_is_named(export, issuer):
    """By ref, with how many there are."""
    path = export([accepted("c"), accepted("b"), accepted("d")])
    assert refused(path, issuer.trust_path).reason.startswith("3 accepted requests")
    assert refused(path, issuer.trust_path).reason.endswith("the first is b")


def test_who_joined_a_job_ends_with_it(export, issuer):
    """And is open again if it is given up."""
    path = export([*ENTRIES[:4], accepted("c"), joined("j", "c"), certified("j")])
    assert verify_log(path, issuer.trust_path).requests == 3
    path = export(
        [*ENTRIES[:4], accepted("c"), joined("j", "c"), certified("j"), dumps({"kind": "job.quarantined", "job": "j"})]
    )
    assert refused(path, issuer.trust_path).reason.startswith("3 accepted requests")


BAD_ENTRIES = [
    b"x", b"{}", b"[]", b"\xff", b"", b'{"kind": "x"}', dumps({"kind": 1}), dumps({"kind": "request.accepted"}),
    dumps({"kind": "job.batched"}), dumps({"kind": "job.certified"}),
    dumps({"kind": "request.accepted", "ref": "z", "due": "soon"}),
    dumps({"kind": "request.accepted", "ref": ["z"], "due": "2026-01-01"}),
    dumps({"kind": "request.extended", "ref": "nobody", "due": "2026-01-01"}),
    dumps({"kind": "request.extended", "ref": "a", "due": 5}), dumps({"kind": "request.retried", "ref": "nobody"}),
    dumps({"kind": "job.batched", "job": "j", "refs": 7}), dumps({"kind": "job.batched", "job": "j", "refs": [7]}),
    dumps({"kind": "job.joined", "job": "j", "refs": ["b", 7]}), dumps({"kind": "job.joined", "refs": ["b"]}),
    dumps({"kind": "requests.rejected", "refs": ["a", {}]}), dumps({"kind": "job.certified", "job": []}),
    b'{"at":"x","kind":"a","kind":"b"}', b'{"kind":NaN}', b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("entry", BAD_ENTRIES, ids=lambda entry: repr(entry[:60]))
def test_one_bad_entry_does_not_stop_verification(export, issuer, entry):
    """It is hashed and reported, it changes no promise, and what comes behind it counts."""
    path = export([*ENTRIES[:4], entry, *ENTRIES[4:]])
    verified = verify_log(path, issuer.trust_path)
    assert (verified.unreadable, verified.requests) == ([4], 2)
    waiting = export([*ENTRIES[:4], entry])
    assert refused(waiting, issuer.trust_path, today=DUE + dt.timedelta(days=1)).code == ExitCode.INCOMPLETE


def test_a_kind_that_this_release_does_not_know_is_readable(export, issuer):
    """A later release may say more."""
    assert verify_log(export([*ENTRIES, dumps({"kind": "x.y"})]), issuer.trust_path).unreadable == []


def test_an_entry_of_a_request_that_was_never_accepted_changes_nothing(export, issuer):
    """A quarantined job may name one: its other requests are open again."""
    entries = [accepted("a"), batched("j", "a", "b"), certified("j"), dumps({"kind": "job.quarantined", "job": "j"})]
    assert refused(export(entries), issuer.trust_path, today=DUE + dt.timedelta(days=1)).reason.startswith("1 accepted")


def test_what_is_still_open_after_some_entries():
    """Not what was cancelled, rejected or published; but what was certified for a version that nobody published."""
    entries = [
        *(accepted(ref) for ref in "abcde"),
        dumps({"kind": "request.cancelled", "ref": "a"}),
        batched("published", "b"),
        batched("lost", "c"),
        batched("failed", "d"),
        *(certified(job) for job in ("published", "lost")),
        failed("failed", "d"),
        dumps({"kind": "version.published", "job": "published"}),
        b"unreadable",
    ]
    assert still_open(entries) == ["c", "d", "e"]


def test_who_joined_a_job_of_earlier_entries_ends_with_it():
    """The entry that made the job may be before those that a database has lost."""
    ends = [certified("j"), dumps({"kind": "version.published", "job": "j"})]
    assert still_open([accepted("c"), joined("j", "c"), *ends]) == []
    assert still_open([accepted("c"), joined("j", "c"), certified("j")]) == ["c"]


def test_requests_of_earlier_entries_do_not_hide_what_is_still_open():
    """A job that failed, or was split, may name both."""
    begin = [accepted("c"), joined("j", "c")]
    assert still_open([*begin, failed("j", "earlier", "c")]) == ["c"]
    ends = [failed("j"), dumps({"kind": "job.split", "job": "j", "reopened": ["earlier", "c"]})]
    assert still_open([*begin, *ends]) == ["c"]
    assert still_open([dumps({"kind": "request.extended", "ref": "earlier", "due": DUE.isoformat()})]) == []
