"""The keeper of the log on a real database: it signs what goes on from what was signed, and nothing else."""

import base64
import json
import re
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from service.audit.checkpoint import Proof, open_checkpoint
from service.audit.merkle import check_consistency, check_inclusion, consistency_proof, leaf_hash
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify_log import verify_log
from service.db import log_entries
from service.evidence.log_keeper import LogForked
from service.evidence.log_memory import CHECKPOINT, TILES
from tests import ROOT
from tests.issuer import Issuer
from tests.service.conftest import submit
from tests.service.jobs import published


def append(services, count: int) -> None:
    """Some entries."""
    for number in range(count):
        with services.db.transaction() as session:
            log_entries.append(session, "test", number=number)


def opened(services, note: str):
    """The checkpoint of a note, under the service's own key."""
    return open_checkpoint(note, [services.log.key.public_key()])


def tamper(services, statement: str) -> None:
    """What somebody with the database in his hands can do."""
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        connection.execute(statement)


def test_each_checkpoint_is_consistent_with_the_one_before(services):
    """It covers all entries; without a new one the same note is given; with some, a consistent one."""
    append(services, 3)
    note = services.log.sign()
    first = opened(services, note)
    assert (first.size, first.origin) == (3, "unlearnd/log")
    assert services.log.sign() == note
    append(services, 4)
    note = services.log.sign()
    second = opened(services, note)
    check_consistency(3, 7, consistency_proof(services.log.tree().subtree, 7, 3), first.root, second.root)
    assert services.log.checkpoint() == note


def test_an_entry_is_proved(services):
    """The proof holds for its own entry."""
    append(services, 5)
    proof = Proof.loads(services.log.prove(2))
    assert proof.check([services.log.key.public_key()]).size == 5
    assert b'"number":2' in proof.entry


@pytest.fixture
def exported(api, services, tmp_path):
    """Export the log as the client does, with the issuer's trust.json beside it; returns (export, trust)."""

    def write(name: str = "log.jsonl"):
        services.log.sign()
        note = api.get("/v1/log/checkpoint").text
        size = int(note.split("\n")[1])
        lines = [json.dumps({"checkpoint": note})]
        while len(lines) <= size:
            page = api.get("/v1/log/entries", params={"start": len(lines) - 1, "limit": min(3, size - len(lines) + 1)})
            lines += [json.dumps(item) for item in page.json()["items"]]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        (tmp_path / "trust.json").write_bytes(services.keyring.trust())
        return tmp_path / name, tmp_path / "trust.json"

    return write


def test_an_export_verifies_with_what_was_kept_of_it(services, model, api, exported):
    """With an older checkpoint, an older export, or none; the proofs of the API agree."""
    first = submit(api)
    older, trust = exported("older.jsonl")
    kept = older.parent / "checkpoint"
    kept.write_text(services.log.checkpoint())
    api.delete(f"/v1/deletion-requests/{first['id']}")
    submit(api)
    newer, _ = exported()
    for old in (None, kept, older):
        verified = verify_log(newer, trust, old)
        assert (verified.checkpoint.size, verified.requests) == (5, 2)
    a, b = (opened(services, n) for n in (kept.read_text(), services.log.checkpoint()))
    path = api.get("/v1/log/consistency", params={"older": a.size, "newer": b.size}).json()["path"]
    check_consistency(a.size, b.size, [base64.b64decode(h) for h in path], a.root, b.root)
    path = api.get("/v1/log/inclusion", params={"index": 1, "size": b.size}).json()["path"]
    entry = base64.b64decode(api.get("/v1/log/entries", params={"start": 1, "limit": 1}).json()["items"][0]["entry"])
    check_inclusion(leaf_hash(entry), 1, b.size, [base64.b64decode(h) for h in path], b.root)
    for query in ("inclusion?index=9&size=4", "inclusion?index=0&size=99", "consistency?older=4&newer=3"):
        assert api.get(f"/v1/log/{query}").status_code == 422


def forge(path, change) -> None:
    """Change the lines of an export."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda lines: lines[:-1], ExitCode.LOG_FAILURE),
        (lambda lines: [*lines[:-2], lines[-2].replace('"entry": "', '"entry": "AAAA')], ExitCode.LOG_FAILURE),
        (lambda lines: [lines[0], lines[2], lines[1]], ExitCode.MALFORMED),
        (lambda lines: ["nonsense"], ExitCode.MALFORMED),
        (lambda lines: [lines[0].replace("\\n3\\n", "\\n4\\n"), *lines[1:]], ExitCode.LOG_FAILURE),
    ],
    ids=["truncated", "rewritten", "reordered", "nonsense", "another size"],
)
def test_a_changed_export_is_caught(services, model, api, exported, change, code):
    """Its entries must be those of its checkpoint, in order."""
    submit(api)
    export, trust = exported()
    forge(export, change)
    with pytest.raises(VerificationError) as caught:
        verify_log(export, trust)
    assert caught.value.code == code, caught.value.reason


def test_two_pasts_are_called_equivocation(services, model, api, exported):
    """A log that was begun again with the same key and name, against a checkpoint of the first: both roots are said."""
    submit(api)
    export, trust = exported("first.jsonl")
    root_of_first = opened(services, services.log.checkpoint()).root
    tamper(
        services, "UPDATE audit_entries SET entry = '{}', leaf_hash = sha256('\\x00'::bytea || '{}') WHERE index = 0"
    )
    shutil.rmtree(services.settings.storage_dir / "ledger" / "log")
    second, _ = exported("second.jsonl")
    with pytest.raises(VerificationError, match="EQUIVOCATION") as caught:
        verify_log(second, trust, export)
    assert caught.value.code == ExitCode.LOG_FAILURE
    assert base64.b64encode(root_of_first).decode() in caught.value.reason


def test_a_promise_that_was_not_kept_is_in_the_log(services, model, api, exported):
    """An accepted request past its deadline in no record makes an export incomplete; before that it is not."""
    request = submit(api)
    export, trust = exported()
    due = date.fromisoformat(request["due_at"][:10])
    verify_log(export, trust, today=due)
    with pytest.raises(VerificationError, match=request["ref"]) as caught:
        verify_log(export, trust, today=due + timedelta(days=1))
    assert caught.value.code == ExitCode.INCOMPLETE


def test_an_export_of_another_key_is_not_trusted(services, model, api, exported, tmp_path):
    """The issuer's trust.json does not name the key that signed it."""
    export, trust = exported()
    trust.write_bytes(Issuer(tmp_path / "other").keyring.trust())
    with pytest.raises(VerificationError) as caught:
        verify_log(export, trust)
    assert caught.value.code == ExitCode.UNTRUSTED_KEY


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_entries WHERE index = 4",
        "UPDATE audit_entries SET leaf_hash = sha256('x') WHERE index = 1",
        "UPDATE audit_entries SET index = CASE index WHEN 0 THEN -1 ELSE index END; "
        "UPDATE audit_entries SET index = 0 WHERE index = 1; UPDATE audit_entries SET index = 1 WHERE index = -1",
    ],
    ids=["truncated", "rewritten", "reordered"],
)
def test_a_log_that_was_changed_is_not_signed(services, statement):
    """The keeper remembers outside the database; not even more entries make it forget."""
    append(services, 5)
    note = services.log.sign()
    tamper(services, statement)
    for more in (0, 3):
        append(services, more)
        with pytest.raises(LogForked):
            services.log.sign()
    assert services.log.checkpoint() == note


def test_a_database_of_before_gets_its_entries_back(services):
    """Entries that were signed and that an older backup lacks, byte for byte."""
    append(services, 5)
    note = services.log.sign()
    tamper(services, "DELETE FROM audit_entries WHERE index >= 2")
    _, lost = services.log.missing_entries()
    assert [leaf_hash(entry) for entry in lost] == services.log.tree().leaves(2, 5)
    with services.db.transaction() as session:
        for entry in lost:
            log_entries.append_bytes(session, entry)
    assert services.log.missing_entries() == (5, [])
    assert services.log.sign() == note


def test_one_that_went_on_is_begun_anew_by_an_operator_alone(services):
    """A fork is refused; the new log has a name of its own and begins with the old one's end."""
    append(services, 5)
    services.log.sign()
    tamper(services, "DELETE FROM audit_entries WHERE index >= 2")
    append(services, 1)
    with pytest.raises(LogForked):
        services.log.missing_entries()
    services.log.start_new_log()
    note = services.log.sign()
    assert opened(services, note).origin == "unlearnd/log/2"
    with services.db.reading() as session:
        assert '"kind":"log.begun_anew"' in session.scalar(
            text("SELECT convert_from(entry, 'UTF8') FROM audit_entries ORDER BY index DESC LIMIT 1")
        )


def test_a_crash_between_entries_and_memory_loses_nothing(services):
    """What was written behind the last checkpoint is written over."""
    append(services, 2)
    services.log.sign()
    folder = services.settings.storage_dir / "ledger" / "log"
    for level in ("0", "entries"):
        (folder / TILES / level / "000.p" / "4").write_bytes(b"nonsense")
    (folder / f".{CHECKPOINT}").write_text("half a no")
    append(services, 2)
    services.log.sign()
    tamper(services, "DELETE FROM audit_entries")
    assert [leaf_hash(entry) for entry in services.log.missing_entries()[1]] == services.log.tree().leaves(0, 4)


@pytest.mark.slow
def test_an_auditor_can_follow_the_page(services, model, api, exported, tmp_path):
    """docs/guides/auditor.md, block by block, on a release, its issuer's trust.json and an export of the log."""
    page = (ROOT / "docs" / "guides" / "auditor.md").read_text()
    kept = exported("older.jsonl")[0]
    request = published(api, services, "a record")
    digest = api.get("/v1/models/tiny/versions/1").json()["digest"]
    export, trust = exported()
    (tmp_path / "receipt.json").write_text(json.dumps(request))
    (tmp_path / "text").write_text("a record")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "RELEASE": str(services.storage.release(digest)),
        "TRUST": str(trust),
        "LOG": str(export),
        "KEPT": str(kept),
        "RECEIPT": "receipt.json",
        "TEXT": "text",
        "PYTHONPATH": str(ROOT),
    }
    said = {}
    for name in ("verify", "verify-with-log", "verify-log", "read", "without-us", "verify-record"):
        (block,) = re.findall(rf'^```sh title="{name}"\n(.*?)^```', page, re.M | re.S)
        done = subprocess.run(
            ["bash", "-ec", block], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout
    assert said["verify"].startswith("verified: tiny version 1")
    assert said["verify-with-log"] == said["verify"]
    assert said["verify-log"].startswith("verified: unlearnd/log")
    assert said["verify-record"].startswith("verified: the text is record 0")
    assert request["ref"] in (tmp_path / "certificate.html").read_text()
