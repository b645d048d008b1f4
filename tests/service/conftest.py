"""Real PostgreSQL and Valkey, one server each a test process, an empty database a test; and no network at all.

A test without a server asks for none of `servers`, `database_url`, `services`, `api`, `model` and `job`.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service import migrate
from service.bootstrap import Services, build, create_keys
from service.config import Settings
from service.db import api_keys, models
from service.db.log_tables import AuditEntry
from service.db.session import Database
from service.local import postgres, valkey
from service.local.process import wait_until
from service.main import create_app
from service.steps.path.batch import batch_requests
from tests import ROOT, status_door
from tests.s3 import NAME as BUCKET
from tests.s3 import S3Server

REQUESTS = "/v1/deletion-requests"


@pytest.fixture(scope="session")
def servers():
    """(sockets folder) of a running PostgreSQL with a migrated template and the service's role, and a Valkey."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-t-") as place:
        root = Path(place)
        root.chmod(0o755)
        sockets = root / "s"
        sockets.mkdir()
        processes = [
            valkey.process(root / "valkey", sockets, root / "valkey.log"),
            postgres.process(root / "postgres", sockets, root / "postgres.log"),
        ]
        for process in processes:
            process.start()
        try:
            assert wait_until(lambda: valkey.is_ready(sockets), 30)
            assert wait_until(lambda: postgres.is_ready(root / "postgres", sockets), 30)
            set_fsync(sockets, "off")  # nobody cuts the power of a test, and each makes a database
            with psycopg.connect(postgres.url(sockets), autocommit=True) as connection:
                connection.execute("CREATE DATABASE template_unlearnd")
            owner, app = (postgres.url(sockets, "template_unlearnd", user) for user in ("postgres", postgres.APP_ROLE))
            logins = {n: postgres.url(sockets, "template_unlearnd", user) for n, user in postgres.LOGINS.items()}
            migrate.upgrade(owner, app, **logins)
            yield sockets
        finally:
            for process in reversed(processes):
                process.ask_to_stop()
                process.wait()


def set_fsync(sockets: Path, value: str) -> None:
    """Whether the server waits for the disk."""

    def is_so() -> bool:
        with psycopg.connect(postgres.url(sockets)) as connection:
            return connection.execute("SHOW fsync").fetchone() == (value,)

    with psycopg.connect(postgres.url(sockets), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET fsync = {value}")
        connection.execute("SELECT pg_reload_conf()")
    assert wait_until(is_so, 60)


@pytest.fixture
def durable(servers):
    """A server that waits for the disk: what the doctor finds is of the test alone."""
    set_fsync(servers, "on")
    yield
    set_fsync(servers, "off")


@pytest.fixture
def database_url(servers):
    """An empty, migrated database, as the service's role."""
    name = f"t{os.urandom(6).hex()}"
    with psycopg.connect(postgres.url(servers), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template_unlearnd STRATEGY file_copy")
        with psycopg.connect(postgres.url(servers, name)) as copy:  # the log goes on in a copy when an operator says so
            copy.execute("SELECT log_settle(0, '{}'), log_move_seen()")
        yield postgres.url(servers, name, postgres.APP_ROLE)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def key_files(tmp_path_factory) -> Path:
    """A folder of keys to be copied: to make an RSA key takes longer than most tests."""
    folder = tmp_path_factory.mktemp("key_files")
    create_keys(Settings(keys_dir=folder))
    return folder


@pytest.fixture
def services(servers, database_url, key_files, tmp_path) -> Services:
    """The wired parts on real servers, with keys and storage of their own."""
    shutil.copytree(key_files, tmp_path / "keys")
    settings = Settings(
        database_url=database_url,
        owner_database_url=database_url.replace(postgres.APP_ROLE, "postgres", 1),
        broker_url=valkey.url(servers),
        storage_dir=tmp_path / "storage",
        keys_dir=tmp_path / "keys",
        max_wait_seconds=0,
        lease_seconds=5,
        max_body_bytes=200_000,
        max_records=8,
        max_record_bytes=1000,
        callback_allow_private=True,
    )
    parts = build(settings)
    status_door.watch(parts.db.engine)
    yield parts
    parts.close()


@pytest.fixture
def new_key(services):
    """Make an API key with these scopes; returns the secret."""

    def make(*scopes: str) -> str:
        with services.db.transaction() as session:
            return api_keys.create(session, "test", list(scopes))[1]

    return make


@pytest.fixture
def api(services, new_key):
    """An HTTP client of the application on the same machine, with an admin key."""
    key = {"Authorization": f"Bearer {new_key('admin')}"}
    with TestClient(create_app(services), headers=key, client=("127.0.0.1", 50_000)) as client:
        yield client


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random model's folder with its corpora; nothing is memorised."""
    from tests import support  # torch: the tests of the verifier do without it

    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = support.random_model("gpt_neox"), support.train_tokenizer(support.KNOWN)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    support.write_texts(folder / "retain.jsonl", support.RETAIN)
    support.write_texts(folder / "heldout.jsonl", support.HELDOUT)
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """The variables of a server that speaks the API of S3, with a bucket."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield server.variables
    server.stop()


@pytest.fixture
def bucket_url(s3, monkeypatch) -> str:
    """An empty prefix of the bucket, with the variables that lead there."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


@pytest.fixture
def as_process(services):
    """The services as a process has them (api, control or compute): with its own login."""
    opened = []

    def wired(process: str) -> Services:
        url = services.settings.database_url.replace(postgres.APP_ROLE, postgres.LOGINS[process], 1)
        opened.append(Database(url, pool_size=2))
        return replace(services, db=opened[-1])

    yield wired
    for database in opened:
        database.close()


def registration(base: Path, **changes) -> dict:
    """The body that registers the model."""
    body = {
        "name": "tiny",
        "path": str(base / "model"),
        "retain_path": str(base / "retain.jsonl"),
        "heldout_path": str(base / "heldout.jsonl"),
        "policy": {"max_wait_seconds": 0},
    }
    return {**body, **changes}


@pytest.fixture
def model(api, base) -> str:
    """A registered model's name."""
    assert api.post("/v1/models", json=registration(base)).status_code == 201
    return "tiny"


def submit(api, headers=None, **fields) -> dict:
    """A request of one record."""
    body = {"model": "tiny", "records": [{"text": "a record"}], **fields}
    return api.post(REQUESTS, json=body, headers=headers).json()


def logged(services) -> list[dict]:
    """The entries of the log, in order."""
    with services.db.reading() as session:
        return [json.loads(entry) for entry in session.scalars(select(AuditEntry.entry).order_by(AuditEntry.index))]


def only_model(services) -> UUID:
    """The id of the one model."""
    with services.db.transaction() as session:
        return models.by_name(session, "tiny").id


@pytest.fixture
def job(api, services, model):
    """(request, job id) of a sealed window."""
    request = submit(api)
    return request, batch_requests(services, only_model(services))


def runbook(name: str) -> str:
    """The block of that name in docs/guides/operations.md."""
    blocks = re.findall(
        rf'^```sh title="{name}"\n(.*?)^```', (ROOT / "docs" / "guides" / "operations.md").read_text(), re.M | re.S
    )
    assert len(blocks) == 1
    return blocks[0]


@pytest.fixture
def run(services, servers, tmp_path):
    """Run a block of the runbook as an operator's shell would."""
    settings = services.settings
    (tmp_path / "backup").mkdir()
    programs = postgres.prepare(servers.parent / "postgres")
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "BACKUP": str(tmp_path / "backup"),
        "UNLEARND_DATABASE_URL": settings.database_url,
        "UNLEARND_BROKER_URL": settings.broker_url,
        "UNLEARND_STORAGE_DIR": str(settings.storage_dir),
        "UNLEARND_KEYS_DIR": str(settings.keys_dir),
        "UNLEARND_OWNER_DATABASE_URL": settings.owner_database_url,
        "PYTHONPATH": str(ROOT),
    }

    def run_block(name: str, **variables: str) -> str:
        services.db.engine.dispose()
        done = subprocess.run(
            ["bash", "-ec", runbook(name)], env=environment | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_block


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a socket or to look a name up fails."""

    def refuse(*_, **__):
        raise AssertionError("the verifier used the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
