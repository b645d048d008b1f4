"""After completion and purge a planted text is nowhere, and a backup of before does not bring it back readable."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import psycopg
import pytest
from redis import Redis

from service.bootstrap import build
from service.config import Settings
from service.db import requests
from service.local import postgres, valkey
from service.local.process import wait_until
from service.steps.operator.restore import reconcile
from service.steps.upkeep.purge import purge_restored
from tests import support
from tests.e2e.adversary import Adversary
from tests.e2e.conftest import Running, ended, register
from worker.engine.data import encode

TEXT = support.KNOWN[0]
NUMBER = TEXT.split("number ")[1].split()[0]
SUBJECT = "Zoraida Quill, file 07700-900123"


def forms(folder: Path) -> dict[str, bytes]:
    """How the text, its number and the subject might be written somewhere: as text, in codings, as token ids."""
    from transformers import AutoTokenizer

    input_ids = [int(i) for i in encode(AutoTokenizer.from_pretrained(folder / "model"), TEXT)][4:16]
    codings = {
        "int64": numpy.array(input_ids, "<i8").tobytes(),
        "int32": numpy.array(input_ids, "<i4").tobytes(),
        "ids": ", ".join(map(str, input_ids)).encode(),
        "ids close": ",".join(map(str, input_ids)).encode(),
    }
    for name, word in {"number": NUMBER, "subject": SUBJECT}.items():
        data = word.encode()
        codings |= {
            name: data,
            f"{name} utf-16": word.encode("utf-16-le"),
            f"{name} hex": data.hex().encode(),
            f"{name} reversed": data[::-1],
        }
        for shift in range(3):  # base64 of it at each place within a longer text, without its ends
            codings[f"{name} base64 {shift}"] = base64.b64encode(b"\0" * shift + data)[4:-4]
    return {name: form for name, form in codings.items() if len(form) >= 7}


class Search:
    """Looks for every form in whatever it is shown."""

    def __init__(self, folder: Path) -> None:
        """Take the model's folder, for its tokenizer."""
        self.forms = forms(folder)

    def data(self, where: str, data: bytes) -> list[str]:
        """Where a form stands in some bytes."""
        return [f"{name} in {where}" for name, form in self.forms.items() if form in data]

    def files(self, root: Path) -> list[str]:
        """Where one stands in the files below a folder, databases and logs included; corpora are the operator's own."""
        hits: list[str] = []
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and "corpora" not in path.parts:
                hits += self.data(str(path.relative_to(root)), path.read_bytes())
        return hits


def broker(stack: Running) -> Iterator[bytes]:
    """Everything that Valkey holds."""
    with Redis(unix_socket_path=str(valkey.socket_path(stack.data / "run" / "sockets"))) as client:
        for key in client.scan_iter():
            yield key + (client.dump(key) or b"")


def answers(stack: Running, request: dict) -> Iterator[bytes]:
    """What the API says of the request, its job, its version, the log, itself, and a bad submission of the text."""
    client, job = stack.client, request["job_id"]
    paths = [
        f"/v1/deletion-requests/{request['id']}",
        "/v1/deletion-requests",
        f"/v1/jobs/{job}",
        "/v1/jobs",
        f"/v1/jobs/{job}/events",
        f"/v1/jobs/{job}/history",
        f"/v1/jobs/{job}/certificate?as=html",
        "/v1/models/sentinel/versions/latest",
        "/v1/models/sentinel/versions",
        "/v1/log/entries",
        "/metrics",
        "/openapi.json",
        "/v1/models/sentinel/versions/latest/certificate?as=markdown",
        f"/v1/jobs/{NUMBER}x",
    ]
    for path in paths:
        yield client._http.get(path).content.replace(f"/v1/jobs/{NUMBER}x".encode(), b"")
    for entry in client.call("GET", "/v1/log/entries")["items"]:
        yield base64.b64decode(entry["entry"])
    for part in ("latest/certificate",):
        yield base64.b64decode(client.call("GET", f"/v1/models/sentinel/versions/{part}")["payload"])
    bad = {"model": "sentinel", "records": [{"text": TEXT, SUBJECT: 1}], "regulation": TEXT}
    yield client._http.post("/v1/deletion-requests", json=bad).content


@pytest.fixture(scope="module")
def place():
    """A folder for everything that the stack writes, its home and caches included."""
    with tempfile.TemporaryDirectory(prefix="unlearnd-s-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def quick(place):
    """A stack that purges at once."""
    home = place / "home"
    home.mkdir()
    caches = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "HF_HOME": home / "hf", "TORCHINDUCTOR_CACHE_DIR": home}
    settings = {"UNLEARND_CUSTODY_DAYS": "0", "UNLEARND_COLLECT_SECONDS": "1"}
    running = Running(place / "data", **{k: str(v) for k, v in caches.items()}, **settings)
    try:
        yield running
    finally:
        assert running.stop() == 0


def dump(stack: Running, file: Path, form: str = "custom") -> Path:
    """A backup of the database."""
    programs = postgres.prepare(stack.data / "postgres")
    url = postgres.url(stack.data / "run" / "sockets")
    subprocess.run([str(programs / "pg_dump"), f"--format={form}", f"--file={file}", url], check=True)
    return file


def test_a_planted_text_is_nowhere_after_purge(quick, folder, place, tmp_path):
    """Not in logs, database files or dumps, Valkey, storage, temporary and cache folders, records or answers."""
    search = Search(folder)
    (place / "planted").mkdir()  # that each form would be found; the last one beside everything else
    for name, form in search.forms.items():
        (place / "planted" / "form").write_bytes(b"x" * 7 + form + b"x")
        assert f"{name} in form" in search.files(place / "planted"), name
    assert f"{name} in planted/form" in search.files(place)
    shutil.rmtree(place / "planted")

    register(quick, folder, "sentinel")
    callback = f"http://127.0.0.1:65000/?subject={SUBJECT.replace(' ', '%20')}&n={NUMBER}"
    with pytest.raises(Exception, match="regulation"):
        quick.client.submit("sentinel", [TEXT], regulation=TEXT)
    probes = [{"prompt": f"What is the number of {SUBJECT}?", "secret": NUMBER}]
    request = quick.client.submit("sentinel", [TEXT], subject_ref=SUBJECT, callback_url=callback, probes=probes)
    kept = dump(quick, tmp_path / "before.dump")
    assert search.data("a dump", dump(quick, tmp_path / "before.sql", "plain").read_bytes()) == []
    request = ended(quick, request)
    assert (request["status"], request["version"]) == ("completed", 1)

    def purged() -> bool:
        give_up_callbacks(quick)  # again: one may be on its way, and is put off when it comes back
        return is_purged(quick, request["id"])

    assert wait_until(purged, 60), quick.logs()[-3000:]

    # Before any vacuum: what is left of the rows is ciphertext, and its key is gone.
    quick.client.call("GET", "/readyz")
    flush(quick)
    assert search.files(place) == []
    assert search.data("a dump", dump(quick, tmp_path / "after.sql", "plain").read_bytes()) == []
    assert [hit for data in broker(quick) for hit in search.data("Valkey", data)] == []
    assert [hit for data in answers(quick, request) for hit in search.data("an answer", data)] == []
    assert not list((quick.data / "storage" / "work").iterdir())

    restored(quick, kept, request, search, tmp_path)


def give_up_callbacks(stack: Running) -> None:
    """Nobody listens: as if it had been tried ten times."""
    with psycopg.connect(postgres.url(stack.data / "run" / "sockets"), autocommit=True) as connection:
        connection.execute("UPDATE outbox SET next_at = NULL")


def is_purged(stack: Running, request_id: str) -> bool:
    """Whether the data key is destroyed."""
    with psycopg.connect(postgres.url(stack.data / "run" / "sockets")) as connection:
        query = "SELECT wrapped_key IS NULL FROM deletion_requests WHERE id = %s"
        return bool(connection.execute(query, [request_id]).fetchone()[0])


def flush(stack: Running) -> None:
    """Let PostgreSQL write its pages down, so that looking into its files means something."""
    with psycopg.connect(postgres.url(stack.data / "run" / "sockets"), autocommit=True) as connection:
        connection.execute("CHECKPOINT")


def restored(stack: Running, backup: Path, request: dict, search: Search, tmp_path: Path) -> None:
    """The backup of before the purge, in a database of its own beside the same storage: purged again, nothing opens."""
    sockets = stack.data / "run" / "sockets"
    with psycopg.connect(postgres.url(sockets), autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    programs = postgres.prepare(stack.data / "postgres")
    subprocess.run(
        [str(programs / "pg_restore"), "--no-owner", f"--dbname={postgres.url(sockets, 'restored')}", str(backup)],
        check=True,
    )
    parts = build(
        Settings(
            database_url=postgres.url(sockets, "restored", postgres.APP_ROLE),
            broker_url=valkey.url(sockets),
            storage_dir=stack.data / "storage",
            keys_dir=stack.data / "keys",
        )
    )
    with parts.db.reading() as session:
        assert requests.by_id(session, request["id"]).wrapped_key is not None  # or this would show nothing
    assert reconcile(parts).adopted == ["sentinel/1"]
    assert [str(i) for i in purge_restored(parts)] == [request["id"]]
    with parts.db.reading() as session:
        row = requests.by_id(session, request["id"])
        assert (row.wrapped_key, row.subject_ref, row.status) == (None, None, "completed")
    parts.close()
    flush(stack)
    assert search.files(stack.data) == []
    command = [sys.executable, "-m", "service.cli", "doctor", "--data-dir", str(stack.data), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert search.data("the doctor", done.stdout.encode() + done.stderr.encode()) == []
    json.loads(done.stdout)


PADDING = "The rest of this record makes it long enough for PostgreSQL to write its length in four bytes. "
LONG = [f"{text} {PADDING}" for text in support.people(3, seed=77)]


def database_bytes(stack: Running, dumped: Path) -> dict[str, bytes]:
    """What a thief may have of the database: heap pages, WAL, and a dump."""
    flush(stack)
    data = stack.data / "postgres"
    heap, wal = data / "base", data / "pg_wal"
    read = {place: b"".join(f.read_bytes() for f in sorted(place.rglob("*")) if f.is_file()) for place in (heap, wal)}
    return {"heap": read[heap], "wal": without_page_headers(read[wal]), "dump": dumped.read_bytes()}


def without_page_headers(wal: bytes) -> bytes:
    """WAL in which a record that goes on in the next page of 8 KiB is in one piece, as whoever reads WAL sees it."""
    pages = (wal[start : start + 8192] for start in range(0, len(wal), 8192))
    return b"".join(page[40 if page[2:3] and page[2] & 2 else 24 :] for page in pages)  # XLP_LONG_HEADER is 2


@pytest.mark.slow
def test_a_thief_with_an_old_dump_and_todays_keys_reads_nothing(quick, folder, tmp_path):
    """From heap pages, WAL and a dump of before the purge: all texts with the keys of then, none with those of now."""
    quick.client.call("POST", "/v1/models", json=slow_model(folder))
    sent = [quick.client.submit("slow", [text]) for text in LONG]
    old = dump(quick, tmp_path / "old.sql", "plain")
    ids, texts = [request["id"] for request in sent], {text.encode() for text in LONG}
    thief = Adversary(quick.data / "keys", ids)
    assert {place: thief.texts(data) for place, data in database_bytes(quick, old).items()} == dict.fromkeys(
        ("heap", "wal", "dump"), texts
    )
    for request_id in ids:
        quick.client.cancel(request_id)
    assert wait_until(lambda: all(is_purged(quick, request_id) for request_id in ids), 60), quick.logs()[-3000:]
    assert wait_until(lambda: not is_marked(quick), 60), quick.logs()[-3000:]
    after = database_bytes(quick, old)
    assert {place: bool(thief.texts(data)) for place, data in after.items()} == dict.fromkeys(after, True)
    now = Adversary(quick.data / "keys", ids)
    assert {place: now.texts(data) for place, data in after.items()} == {place: set() for place in after}


def slow_model(folder: Path) -> dict:
    """A model whose batches stay open, so that its requests can be cancelled."""
    paths = {name: str(folder / f"{name.removesuffix('_path')}.jsonl") for name in ("retain_path", "heldout_path")}
    return {"name": "slow", "path": str(folder / "model"), **paths, "policy": {"max_wait_seconds": 3600}}


def is_marked(stack: Running) -> bool:
    """Whether an epoch with purged requests still has its key."""
    with psycopg.connect(postgres.url(stack.data / "run" / "sockets")) as connection:
        return bool(connection.execute("SELECT count(*) FROM key_epochs WHERE has_purged").fetchone()[0])
