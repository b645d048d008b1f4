"""Migrations on a database that is in use: short waits, one transaction each, and what people sent stays."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service import migrate
from service.db import log_entries
from tests.growth import grow
from tests.service.conftest import REQUESTS, submit
from tests.service.jobs import published

REVISIONS = sorted(path.name[:4] for path in (migrate.CHECKOUT / "versions").glob("0*.py"))


def revision(services) -> str:
    """What the database is at."""
    with psycopg.connect(services.settings.owner_database_url) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def test_a_migration_does_not_wait_behind_somebody_who_reads(services):
    """It gives up after 5 s; what came before it stays, and it goes on from there."""
    owner = services.settings.owner_database_url
    services.db.engine.dispose()
    migrate.downgrade(owner, "0006")
    with psycopg.connect(owner) as reader:
        reader.execute("SELECT count(*) FROM jobs")  # and keeps its lock: 0008 adds a column to jobs
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(owner)
        assert revision(services) == "0007"
    migrate.upgrade(owner)
    assert revision(services) == REVISIONS[-1]


def test_two_do_not_migrate_at_once(services):
    """The second one waits for the first, no longer than for any lock, and then gives up."""
    owner = services.settings.owner_database_url
    with psycopg.connect(owner) as first:
        first.execute("SELECT pg_advisory_lock(%s)", [migrate.MIGRATION_LOCK])
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(owner)
    migrate.upgrade(owner)


OLDER = [pytest.param(revision, marks=pytest.mark.slow) for revision in REVISIONS[3:-2]]


@pytest.mark.parametrize("back", [REVISIONS[2], *OLDER, REVISIONS[-2]])
def test_what_is_there_outlives_every_migration(api, services, model, back):
    """From each revision since evidence was kept: the version, its record and a request that waits are as they were.

    Only the model's family is not known again.
    """
    done, waiting = published(api, services, "the first record"), submit(api, records=[{"text": "the second record"}])
    paths = [f"{REQUESTS}/{r['id']}" for r in (done, waiting)] + ["/v1/models/tiny/versions/1", "/v1/models/tiny"]
    before = [api.get(path).json() for path in paths]
    if back < "0024":
        before[-1]["family"] = None
    services.db.engine.dispose()
    migrate.downgrade(services.settings.owner_database_url, back)
    assert revision(services) == back
    migrate.upgrade(services.settings.owner_database_url)
    assert [api.get(path).json() for path in paths] == before


@pytest.mark.slow
def test_a_backup_of_an_older_release_is_restored(api, services, model, run):
    """It has no corpora yet, and those of today refer to its models: all that is there goes, and is migrated again."""
    services.db.engine.dispose()
    owner = services.settings.owner_database_url
    migrate.downgrade(owner, "0006")
    run("backup")
    migrate.upgrade(owner)
    request = published(api, services, "a record")
    run("restore-database")
    shown = run("restore")
    assert revision(services) == REVISIONS[-1]
    assert "taken up again: tiny/1" in shown
    assert "nothing wrong was found" in shown
    assert api.get("/v1/models/tiny/versions/latest").json()["version"] == 1
    assert api.get(f"{REQUESTS}/{request['id']}").status_code == 404  # it came after the backup
    run("backup")  # and what was restored can be saved and restored again
    run("restore-database")
    assert "nothing wrong was found" in run("restore")


def test_migrating_again_changes_nothing_and_gives_a_new_password(services):
    """Grants and the service's role are made once; a second run is the same run."""
    settings = services.settings
    migrate.upgrade(settings.owner_database_url, settings.database_url.replace("unlearnd@", "unlearnd:secret@", 1))
    with services.db.transaction() as session:
        log_entries.append(session, "test")


@pytest.mark.slow
def test_a_million_requests_are_migrated_within_the_time_outs(services, model, new_key):
    """Those of the migration, 60 s a statement, and those of the service, which writes meanwhile."""
    new_key("submit")
    services.db.engine.dispose()
    owner = services.settings.owner_database_url
    grow(services, model, requests=1_000_000)
    services.db.engine.dispose()
    migrate.downgrade(owner, "0028")
    ended, written = threading.Event(), list[int]()
    write = text("UPDATE deletion_requests SET traceparent = 'x' WHERE seq = (SELECT min(seq) FROM deletion_requests)")

    def go_on_writing() -> None:
        while not ended.is_set():
            with services.db.transaction() as session:
                written.append(session.execute(write).rowcount)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(go_on_writing)
        try:
            migrate.upgrade(owner)
        finally:
            ended.set()
        writing.result()  # it raises what a transaction has raised
    assert revision(services) == REVISIONS[-1]
    assert len(written) > 1
    assert set(written) == {1}
    with services.db.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM deletion_requests")) == 1_000_000
