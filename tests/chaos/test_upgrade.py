"""An upgrade from the release before, with jobs in flight and clients that do not wait."""

import io
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.local import postgres
from service.local.process import wait_until
from tests import support
from tests.chaos.processes import ROOT, Parts
from tests.chaos.run import POLICY

BEFORE = "e79528ce920b"  # the release before: change it with each release
URL, PAUSE = "/v1/deletion-requests", 0.2
SHORT = [{"text": "A"}]  # nothing can be measured on it: it is rejected


def source_before(place: Path) -> Path:
    """The source code of the release before."""
    archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip("this checkout has no history")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(place, filter="data")
    return place


@contextmanager
def database(place: Path) -> Iterator[Path]:
    """A PostgreSQL server; the folder of its sockets."""
    sockets = place / "db-s"
    sockets.mkdir()
    server = postgres.process(place / "db", sockets, place / "db.log")
    server.start()
    try:
        assert wait_until(lambda: postgres.is_ready(place / "db", sockets), 30)
        yield sockets
    finally:
        server.ask_to_stop()
        server.wait()


class Clients:
    """A client that posts and reads without a pause, through whatever takes requests: a load balancer's view."""

    def __init__(self, api: httpx.Client, model: str) -> None:
        """Begin."""
        self.api, self._model = api, model
        self.accepted: list[str] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(PAUSE):
            number += 1
            body = {"model": self._model, "records": SHORT}
            accepted = self._ask("POST", URL, json=body, headers={"Idempotency-Key": f"short-{number}"})
            if accepted:
                self.accepted.append(accepted["id"])
                self._ask("GET", f"{URL}/{accepted['id']}")
            self._ask("GET", "/v1/jobs")

    def _ask(self, method: str, path: str, **arguments: object) -> dict[str, str]:
        try:
            answer = self.api.request(method, path, **arguments)
        except httpx.TransportError as error:
            self.failures.append(f"{method} {path}: {type(error).__name__}")
            return {}
        if not answer.is_success:
            self.failures.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
            return {}
        return answer.json()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()


def upgrade(parts: Parts, clients: Clients, order: tuple[str, ...]) -> None:
    """Migrate, then replace the parts one by one; control rests meanwhile."""
    parts.stop("control")
    parts.migrate()
    for part in order:
        if part == "api":
            clients.api = _new_api(parts)
            parts.stop("api")
        else:
            if part != "control":
                parts.stop(part)
            parts.start(part)
            if order[-1] == "api":  # the old API works with new workers for a while
                _wait_for_new(clients)


def _new_api(parts: Parts) -> httpx.Client:
    """A client of an API of this release, once that takes requests."""
    new = parts.start_api("new-api")
    assert wait_until(lambda: _is_ready(new), 60), parts.logs()
    return new


def _wait_for_new(clients: Clients) -> None:
    """Wait until the client has had some further answers."""
    count = len(clients.accepted)
    assert wait_until(lambda: len(clients.accepted) > count + 5 or clients.failures, 60)


def _is_ready(api: httpx.Client) -> bool:
    try:
        return api.get("/readyz").is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("order", [("control", "api", "compute"), ("compute", "control", "api")])
def test_an_upgrade_with_jobs_in_flight_answers_throughout(base, order):
    """Every POST and GET is answered, and every request that was accepted before, during or after ends as it should.

    In the order of the guide, and with the workers first: a new API with old ones, and an old API with new ones.
    """
    with tempfile.TemporaryDirectory(prefix="unlearnd-u-", dir="/var/tmp") as folder:
        place = Path(folder)
        place.chmod(0o777)
        old = source_before(place / "old")
        with database(place) as sockets:
            users = ["postgres", postgres.APP_ROLE, *postgres.LOGINS.values()]
            owner, app, *logins = (f"postgresql://{user}@/postgres?host={sockets}" for user in users)
            settings = {f"{name.upper()}_DATABASE_URL": url for name, url in zip(postgres.LOGINS, logins, strict=True)}
            parts = Parts(place, database=app, owner=owner, **settings)
            try:
                drill(parts, base, old, order)
            finally:
                parts.stop()


def drill(parts: Parts, base: Path, old: Path, order: tuple[str, ...]) -> None:
    """Begin with the old release, upgrade in the middle of its job, and wait for all ends."""
    parts.migrate(old)
    parts.make_keys(old)
    api = parts.start_api(source=old)
    for name in ("control", "compute"):
        parts.start(name, old)
    assert wait_until(lambda: _is_ready(api), 60), parts.logs()
    files = {"path": "model", "retain_path": "retain.jsonl", "heldout_path": "heldout.jsonl"}
    paths = {name: str(base / file) for name, file in files.items()}
    for name in ("one", "short"):
        api.post("/v1/models", json={"name": name, "policy": POLICY, **paths}).raise_for_status()

    def submit(client: httpx.Client, text: str) -> str:
        answer = client.post(URL, json={"model": "one", "records": [{"text": text}]})
        return answer.raise_for_status().json()["id"]

    requests = [submit(api, support.KNOWN[0])]

    def training() -> bool:
        return any(job["stage"] == "unlearn" and job["epoch"] for job in api.get("/v1/jobs").json()["items"])

    assert wait_until(training, 120), parts.logs()
    requests.append(submit(api, support.KNOWN[1]))
    clients = Clients(api, "short")
    try:
        upgrade(parts, clients, order)
        requests.append(submit(clients.api, support.KNOWN[2]))
        states = ends(parts, clients.api, requests)
    finally:
        clients.stop()
    assert clients.failures == []
    assert len(clients.accepted) > 10
    assert set(states) == {("completed", None)}, (states, parts.logs())
    assert {status for status, _ in ends(parts, clients.api, clients.accepted)} <= {"not_memorised", "rejected"}
    numbers = [version["version"] for version in clients.api.get("/v1/models/one/versions").json()["items"]]
    assert sorted(numbers) == list(range(len(numbers)))
    for client in (api, clients.api):
        client.close()


def ends(parts: Parts, api: httpx.Client, requests: list[str]) -> list[tuple[str, str | None]]:
    """Wait until all have ended; the status and reason of each."""
    states: list[tuple[str, str | None]] = []

    def all_end() -> bool:
        answers = [api.get(f"{URL}/{identifier}").json() for identifier in requests]
        states[:] = [(answer["status"], answer["reason"]) for answer in answers]
        return all(answer["finished_at"] for answer in answers)

    assert wait_until(all_end, 400), (states, parts.logs())
    return states
