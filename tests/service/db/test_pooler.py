"""A real PgBouncer between the service and PostgreSQL, which gives each transaction any session of the server."""

import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.bootstrap import build
from service.db import api_keys
from service.doctor import examine
from service.doctor.database import LIMITS
from service.domain.errors import CannotStart
from service.local import postgres
from service.local.process import Process, wait_until
from service.main import create_app
from tests.service.conftest import REQUESTS, registration, submit
from tests.service.jobs import publish_what_waits

PGBOUNCER = shutil.which("pgbouncer")
PORT = 6432  # of a socket in a folder
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")
CONFIGURATION = """
[databases]
* = host={servers}
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 2
max_prepared_statements = 0
"""


@pytest.fixture
def pooler(servers):
    """The folder of the socket of a PgBouncer with two sessions of the server for each login."""
    folder = Path(tempfile.mkdtemp(dir=servers.parent))  # the other user gets there
    (folder / "ini").write_text(CONFIGURATION.format(servers=servers, port=PORT, folder=folder))
    logins = (postgres.APP_ROLE, *postgres.LOGINS.values())
    (folder / "users").write_text("".join(f'"{login}" ""\n' for login in logins))
    owner = servers.stat().st_uid  # who may connect to the server's socket
    for path in (folder, *folder.iterdir()):
        os.chown(path, owner, -1)
    user = postgres.OS_USER if os.geteuid() == 0 else None  # PgBouncer refuses to run as root
    process = Process("pgbouncer", [PGBOUNCER, str(folder / "ini")], folder / "log", user=user)
    process.start()
    try:
        assert wait_until((folder / f".s.PGSQL.{PORT}").exists, 60), (folder / "log").read_text()
        yield folder
    finally:
        process.ask_to_stop()
        process.wait()


@pytest.fixture
def pooled(services, pooler):
    """The services of a process whose database is the pooler."""
    direct = services.settings.database_url
    through = f"{direct.partition('?')[0]}?host={pooler}&port={PORT}"
    changes = {"database_url": through, "listen_database_url": direct, "database_pooler": True}
    parts = build(services.settings.model_copy(update=changes))
    yield parts
    parts.close()


def sessions(services) -> int:
    """How many sessions of the server the service has in this database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
    with psycopg.connect(services.settings.owner_database_url) as connection:
        return connection.execute(query, [postgres.APP_ROLE]).fetchone()[0]


def limits(services) -> list[str]:
    """Which limits the doctor misses."""
    return [finding.problem.split()[3] for finding in examine(services) if finding.check == "connections"]


def test_the_whole_path_goes_through_a_pooler(pooled, base, new_key):
    """Many callers share two sessions of the server. The API has one more, in which it hears notifications."""
    headers = {"Authorization": f"Bearer {new_key('admin')}"}
    app = create_app(pooled)
    with TestClient(app, headers=headers, client=("127.0.0.1", 50_000)) as api:
        assert wait_until(lambda: app.state.listener._callers is not None, 60)
        assert api.post("/v1/models", json=registration(base)).status_code == 201
        with ThreadPoolExecutor(12) as pool:
            ids = [request["id"] for request in pool.map(lambda _: submit(api), range(24))]
        publish_what_waits(pooled)
        assert {api.get(f"{REQUESTS}/{request_id}").json()["status"] for request_id in ids} == {"completed"}
        assert api.get("/readyz").status_code == 200
        before = time.monotonic()
        with pooled.db.transaction() as session:
            session.execute(text(f"NOTIFY {api_keys.CHANNEL}"))
        assert wait_until(lambda: app.state.listener._forgotten_at > before, 5)
        assert sessions(pooled) <= 3 + 1  # the fixtures have one that goes by no pooler


def test_limits_come_with_the_login_where_sessions_set_none(pooled, run):
    """The doctor names what is missing, and the block of the guide mends it."""
    assert limits(pooled) == [f"{name}:" for name in LIMITS]
    run("pooler-limits", LOGIN=postgres.APP_ROLE, STATEMENT_TIMEOUT="10s")
    with psycopg.connect(pooled.settings.owner_database_url) as connection:  # sessions of before do not know it
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'unlearnd'")
    assert wait_until(lambda: sessions(pooled) == 0, 20)
    assert limits(pooled) == []
    with pooled.db.reading() as session:
        shown = [session.scalar(text(f"SHOW {name}")) for name in (*LIMITS, "timezone")]
    assert shown == ["9s", "10s", "8s", "UTC"]


def test_the_api_does_not_serve_without_notifications(pooled):
    """Through a pooler none comes, and no error says so: a revoked key would go on."""
    pooled.settings.check_pooler()
    with pytest.raises(CannotStart, match="UNLEARND_LISTEN_DATABASE_URL"):
        pooled.settings.model_copy(update={"listen_database_url": ""}).check_pooler()
