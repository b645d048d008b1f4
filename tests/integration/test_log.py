"""The keeper of the log on a real database: it signs what goes on from what was signed, and nothing else."""

import psycopg
import pytest
from sqlalchemy import text

from service.audit.log import check_consistency, consistency_proof, leaf_hash, open_checkpoint
from service.db import audit
from service.log import ENTRIES, MEMORY, LogForked


def append(services, count: int) -> None:
    """Some entries."""
    for number in range(count):
        with services.db.transaction() as session:
            audit.append(session, "test", number=number)


def opened(services, note: str):
    """The checkpoint of a note, under the service's own key."""
    return open_checkpoint(note, [services.log.key.public_key()])


def tamper(services, statement: str) -> None:
    """What somebody with the database in his hands can do."""
    with psycopg.connect(services.settings.database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        connection.execute(statement)


def test_each_checkpoint_is_consistent_with_the_one_before(services):
    """It covers all entries; without a new one the same note is given; with some, a consistent one."""
    append(services, 3)
    leaves, note = services.log.sign()
    first = opened(services, note)
    assert (first.size, first.origin) == (3, "unlearnd/log")
    assert services.log.sign() == (leaves, note)
    append(services, 4)
    leaves, note = services.log.sign()
    second = opened(services, note)
    check_consistency(3, 7, consistency_proof(leaves, 3), first.root, second.root)
    assert services.log.note() == note


def test_an_entry_is_proved(services):
    """The proof holds for its own entry."""
    from service.audit.log import Proof

    append(services, 5)
    proof = Proof.loads(services.log.prove(2))
    assert proof.check([services.log.key.public_key()]).size == 5
    assert b'"number":2' in proof.entry


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
    _, note = services.log.sign()
    tamper(services, statement)
    for more in (0, 3):
        append(services, more)
        with pytest.raises(LogForked):
            services.log.sign()
    assert services.log.note() == note


def test_a_database_of_before_gets_its_entries_back(services):
    """Entries that were signed and that an older backup lacks, byte for byte."""
    append(services, 5)
    leaves, note = services.log.sign()
    tamper(services, "DELETE FROM audit_entries WHERE index >= 2")
    lost = services.log.lost()
    assert [leaf_hash(entry) for entry in lost] == leaves[2:]
    with services.db.transaction() as session:
        for entry in lost:
            audit.append_bytes(session, entry)
    assert services.log.lost() == []
    assert services.log.sign() == (leaves, note)


def test_one_that_went_on_is_begun_anew_by_an_operator_alone(services):
    """A fork is refused; the new log has a name of its own and begins with the old one's end."""
    append(services, 5)
    services.log.sign()
    tamper(services, "DELETE FROM audit_entries WHERE index >= 2")
    append(services, 1)
    with pytest.raises(LogForked):
        services.log.lost()
    services.log.begin_anew()
    _, note = services.log.sign()
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
    with (folder / ENTRIES).open("ab") as handle:
        handle.write(b"bm9uc2Vuc2U=\nhalf a li")
    (folder / f".{MEMORY}.new").write_text("{")
    append(services, 2)
    leaves, _ = services.log.sign()
    tamper(services, "DELETE FROM audit_entries")
    assert [leaf_hash(entry) for entry in services.log.lost()] == leaves
