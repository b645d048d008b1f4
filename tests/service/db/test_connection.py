"""A database that is silent, has moved, or takes no writes."""

import tempfile
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service.db.connection import parameters
from service.db.session import Database
from service.local.process import wait_until
from service.main import DATABASE_SECONDS
from tests.service.api.submissions import REQUESTS, body
from tests.service.served import server_process
from tests.service.silent_proxy import silent_proxy

SILENT = (OperationalError, psycopg.OperationalError)


@pytest.fixture
def proxy(servers):
    """A way to the database that can fall silent."""
    with tempfile.TemporaryDirectory() as folder, silent_proxy(servers, Path(folder) / "s") as proxy:
        yield proxy


def ask(database: Database) -> int:
    """One statement, as most are made."""
    with database.reading() as session:
        return session.scalar(text("SELECT 1"))


def test_a_silent_database_is_given_up_and_found_again(database_url, proxy):
    """A call ends after `answer_seconds`; once the database answers, what was open before is not waited for."""
    database = Database(proxy.url(database_url), answer_seconds=3)
    for _ in range(2):
        with database.reading(), database.reading(), database.transaction() as session:
            session.execute(text("SELECT 1"))
    proxy.silence()
    began = time.monotonic()
    with pytest.raises(SILENT):
        database.statement("SELECT 1", {}, "accept")
    assert time.monotonic() - began < 3 * 5  # some time for a busy machine, and not a quarter of an hour
    proxy.lift()
    assert ask(database) == 1
    database.close()


def test_whoever_waits_inside_a_transaction_is_freed(database_url, proxy):
    """The transaction is rolled back by the server, and its connection is not used again."""
    database = Database(proxy.url(database_url), answer_seconds=3)
    with pytest.raises(SILENT), database.transaction() as session:
        session.execute(text("SELECT 1"))
        proxy.silence()
        session.execute(text("SELECT 2"))
    proxy.lift()
    assert ask(database) == 1
    database.close()


def test_a_slow_answer_is_waited_for(database_url):
    """The server ends a statement first, and says so."""
    database = Database(database_url, answer_seconds=3)
    with database.reading() as session:
        assert session.scalar(text("SELECT 1 FROM pg_sleep(0.2)")) == 1
    with pytest.raises(OperationalError, match="statement timeout"), database.reading() as session:
        session.execute(text("SELECT pg_sleep(60)"))
    database.close()


def test_of_several_hosts_the_one_that_takes_writes_is_used(database_url, servers, tmp_path):
    """The URL is libpq's: any number of hosts."""
    database = Database(database_url.replace(f"host={servers}", f"host={tmp_path},{servers}"))
    assert ask(database) == 1
    database.close()


def test_a_database_that_has_become_a_standby_is_left(database_url):
    """What was open to it is opened anew, by the next caller; its error is the one of a database that is away."""
    database = Database(database_url)
    for statement in (_in_a_transaction, _alone):
        with database.reading() as session:
            session.execute(text("SET default_transaction_read_only = on"))
        with pytest.raises(SILENT, match="standby"):
            statement(database)
        statement(database)
    database.close()


def _in_a_transaction(database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("DELETE FROM downloads"))


def _alone(database: Database) -> None:
    database.statement("WITH gone AS (DELETE FROM downloads RETURNING 1) SELECT 1", {}, "accept")


def test_what_the_url_says_goes_first():
    """An operator may set each limit of libpq."""
    known = parameters("postgresql://unlearnd@a,b:1234/db?connect_timeout=2")
    assert (known["host"], known["port"], known["connect_timeout"]) == ("a,b", ",1234", "2")
    assert known["target_session_attrs"] == "read-write"


@pytest.mark.slow
def test_intake_comes_back_soon_after_a_silent_database(services, model, new_key, proxy):
    """`/readyz` is red meanwhile, and submitters hear 503. The service accepts again within a quarter of a minute."""
    url = proxy.url(services.settings.database_url)
    with server_process(services, database_url=url) as server, server.client(new_key("submit")) as client:
        assert client.post(REQUESTS, json=body()).status_code == 202
        proxy.silence()
        assert wait_until(lambda: server.get("/readyz").status_code == 503, 5)
        began = time.monotonic()
        assert client.post(REQUESTS, json=body()).status_code == 503
        assert time.monotonic() - began < 2 * DATABASE_SECONDS
        proxy.lift()
        assert wait_until(lambda: client.post(REQUESTS, json=body()).status_code == 202, 15)
        assert wait_until(lambda: server.get("/readyz").status_code == 200, 5)
