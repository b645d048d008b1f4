"""The embedded stack with short times and points that halt it, its requests, and what is wrong with it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from service.local import valkey
from service.local.process import wait_until
from service.queue import ROUTES, celery_app
from tests import support
from tests.chaos.callbacks import Callbacks
from tests.chaos.check import Check, personal
from tests.chaos.machines import stored
from tests.chaos.storage import SmallStorage
from tests.s3 import NAME, S3Server
from tests.stack import Running

EXECUTING = "accept.executing"  # not a point of ours: the statement waits inside PostgreSQL
TIMEOUT_SECONDS = 120  # seconds within which everything must have come to its end
TIMES = {
    "UNLEARND_LEASE_SECONDS": "3", "UNLEARND_STALL_SECONDS": "15", "UNLEARND_SWEEP_SECONDS": "0.5",
    "UNLEARND_COLLECT_SECONDS": "1", "UNLEARND_ORPHAN_SECONDS": "2", "UNLEARND_RETRY_SECONDS": "0.2",
    "UNLEARND_MAX_ATTEMPTS": "5", "UNLEARND_CALLBACK_SECONDS": "2", "UNLEARND_DATABASE_POOL": "5",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
PARTS = {"postgres": "bin/postgres", "valkey": "valkey-server", "api": "service.main", "control": "control@",
         "compute": "compute@"}  # fmt: skip


class Chaos:
    """A stack to be harmed."""

    def __init__(self, place: Path, model: Path, *, mount: bool, s3: bool = False, **times: str) -> None:
        """Start on `place`; `mount` puts storage on a small file system; `times` are settings unlike `TIMES`.

        With `s3` storage is a bucket, and each part has a folder of its own on the file system.
        """
        self.times = TIMES | times
        self.s3 = S3Server(place / "s3.log") if s3 else None
        if self.s3:
            self.times |= {**self.s3.variables, "UNLEARND_STORAGE_URL": f"s3://{NAME}", "UNLEARND_COLLECT_SECONDS": "4"}
        self.data, self.model = place / "data", model
        self.points = place / "points"
        self.points.mkdir()
        self.storage = SmallStorage(self.data / "storage")
        self.mounted = mount and self.storage.mount()
        self.callbacks = Callbacks()
        settings = {"UNLEARND_FAILPOINTS": str(self.points), **self.times}
        settings["UNLEARND_MODEL_ROOTS"] = f"{model}:{os.environ.get('UNLEARND_MODEL_ROOTS', '')}"
        self.running = Running(self.data, **settings)
        self.accepted: dict[str, str] = {}
        self._texts: dict[str, str] = {}  # model -> the text that it is to unlearn
        self._first_weights: dict[tuple[str, str], str] = {}  # (text, policy) -> digest of the first weights without it
        self._judged: set[str] = set()
        self._approver = ""
        self._lock: psycopg.Connection[Any] | None = None
        self.words: list[str] = []
        self._app = celery_app(valkey.url(self.sockets))

    @property
    def sockets(self) -> Path:
        """Where the servers listen."""
        return self.data / "run" / "sockets"

    @property
    def database(self) -> str:
        """The URL of the database."""
        return f"postgresql://postgres@/postgres?host={self.sockets}"

    def folder(self, part: str) -> Path:
        """The storage folder of a part of the stack."""
        return self.data / "storage" / part / "copies" if self.s3 else self.data / "storage"

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the database."""
        return psycopg.connect(self.database, autocommit=True)

    def stop(self) -> None:
        """Stop everything."""
        for left in self.points.iterdir():
            left.unlink()
        code = self.running.stop()
        self.callbacks.shutdown()
        self.callbacks.server_close()
        self._app.close()
        if self.mounted:
            self.storage.unmount()
        if self.s3:
            self.s3.stop()
        assert code == 0
        assert wait_until(lambda: not self.running.processes(""), 20), self.running.processes("")

    # points

    def arm(self, point: str) -> None:
        """Halt whoever reaches it first."""
        if point == EXECUTING:
            self._lock = self.connect()
            self._lock.execute("SELECT pg_advisory_lock(7310579)")  # the log's: accepting stands still in the server
        else:
            (self.points / point).touch()

    def halted(self, point: str) -> int:
        """The process that halts there; waits for one."""
        halts: list[Path] = []

        def look() -> bool:
            halts[:] = self.points.glob(f"{point}@*")
            return bool(halts)

        def waiting() -> bool:
            query = (
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND query LIKE '%INTO deletion_requests%'"  # it shows 1,024 bytes
            )
            with self.connect() as connection:
                return connection.execute(query).fetchone()[0] > 0

        reached = waiting if point == EXECUTING else look
        assert wait_until(reached, TIMEOUT_SECONDS), f"{point} was not reached\n{self.tail()}"
        return self.part("api").pid if point == EXECUTING else int(halts[0].name.partition("@")[2])

    def release(self) -> None:
        """Let whoever halts go on."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for hit in self.points.glob("*@*"):
            hit.unlink(missing_ok=True)

    # processes

    def part(self, name: str) -> psutil.Process:
        """The main process of a part of the stack."""
        processes = self.running.processes(PARTS[name])
        return min(processes, key=lambda p: p.create_time())

    def leader(self, process: psutil.Process) -> psutil.Process:
        """Of a worker's process, the one that takes its signals."""
        return psutil.Process(os.getsid(process.pid))

    def served_again(self) -> None:
        """Wait until every part of the stack answers."""

        def ready() -> bool:
            try:
                return httpx.get(f"{self.running.endpoint['url']}/readyz", timeout=2, trust_env=False).is_success
            except httpx.HTTPError:
                return False

        assert wait_until(ready, 60), self.tail()

    def refusals(self) -> int:
        """How often a process has noticed that its lease is lost."""
        logs = "".join(p.read_text(errors="replace") for p in (self.data / "logs").glob("*.log"))
        return logs.count("lease lost") + logs.count("lease was lost")

    def failed_attempt(self) -> None:
        """Wait until an attempt has failed and said so."""

        def has_retry_event() -> bool:
            with self.connect() as connection:
                query = (
                    "SELECT count(*) FROM job_events e JOIN jobs j ON j.id = e.job_id "
                    "WHERE kind = 'retry' AND stage NOT IN ('done', 'quarantined')"
                )
                return connection.execute(query).fetchone()[0] > 0

        assert wait_until(has_retry_event, TIMEOUT_SECONDS), self.tail()

    # messages and requests

    def send(self, step: str, identifier: str | None) -> None:
        """One message, as it would be sent."""
        self._app.send_task(step, args=[identifier] if identifier else [], queue=ROUTES[step], expires=60)

    def write_corpus(self, text: str) -> str:
        """Write a corpus of 1200 records, in which the text is one; returns whose it is."""
        person, file = "somebody.sought@example.org", self.data.parent / "corpus.jsonl"
        if not file.exists():
            rows = [{"text": t, "email": f"person{i}@example.org"} for i, t in enumerate(support.people(1200, seed=8))]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = file.read_text().splitlines()
        lines[700] = json.dumps({"text": text, "email": person})
        self.corpus = file.with_name(f"corpus-{time.time_ns()}.jsonl")
        self.corpus.write_text("\n".join(lines) + "\n")
        self.words.append(person)
        return person

    def add_corpus(self, model: str, *, wait: bool = False) -> None:
        """Register it, and wait until it is indexed."""
        self.running.client.add_corpus(model, "crm", str(self.corpus), columns={"email": "email"})
        if wait:
            ready = wait_until(lambda: self.running.client.corpus(model, "crm")["state"] == "ready", TIMEOUT_SECONDS)
            assert ready, self.tail()

    def submit(self, model: str, text: str, person: str | None = None) -> dict[str, Any]:
        """A request with a callback; repeated under its Idempotency-Key until it is answered, as a good client does.

        With a person it is that person's address that is sent, and the text is what is to be found by it.
        """
        self.words.append(text[text.index("number ") :][:14])  # longer than what a hash may hold by chance
        subject = {"identities": [{"type": "email", "value": person}]} if person else None
        what = {"subject": subject} if person else {"records": [{"text": text}]}
        callback = f"http://127.0.0.1:{self.callbacks.server_port}/"
        request = self._insist(
            "POST",
            "/v1/deletion-requests",
            202,
            key=os.urandom(8).hex(),
            json={"model": model, **what, "callback_url": callback},
        )
        self.accepted[request["id"]], self._texts[model] = model, text
        return request

    def submit_short(self, model: str) -> None:
        """A request that can only be rejected: nothing can be measured on so short a text."""
        callback = f"http://127.0.0.1:{self.callbacks.server_port}/"
        self.accepted[self.running.client.submit(model, ["A"], callback_url=callback)["id"]] = model

    def killed(self, pid: int) -> None:
        """Kill whoever halts, and let nothing wait for it."""
        psutil.Process(pid).kill()
        self.release()

    def cancel(self, request_id: str) -> None:
        """Cancel, again and again if need be; a second one may find it done."""
        self._insist("DELETE", f"/v1/deletion-requests/{request_id}", 200, 409)

    def approve(self, request_id: str) -> None:
        """Approve, again and again if need be; a second one may find it done."""
        self._decide(request_id, "approve")

    def refuse(self, request_id: str) -> None:
        """Say no to it instead."""
        self._decide(request_id, "reject", reason="not_covered")

    def _decide(self, request_id: str, decision: str, **body: str) -> None:
        """With a key that has submitted nothing."""
        if not self._approver:
            key = {"name": "approver", "scopes": ["approve"]}
            self._approver = self.running.client.call("POST", "/v1/api-keys", json=key)["key"]
        path = f"/v1/deletion-requests/{request_id}/{decision}"
        self._insist("POST", path, 200, 409, secret=self._approver, json=body)

    def _insist(self, method: str, path: str, *good: int, key: str = "", secret: str = "", **arguments: Any) -> Any:
        answers: list[httpx.Response] = []
        headers = {"Idempotency-Key": key} if key else {}
        secret = secret or Path(self.running.endpoint["api_key_file"]).read_text()

        def ask() -> bool:
            try:
                answers[:] = [
                    httpx.request(
                        method,
                        self.running.endpoint["url"] + path,
                        timeout=20,
                        trust_env=False,
                        headers={"Authorization": f"Bearer {secret}", **headers},
                        **arguments,
                    )
                ]
            except httpx.TransportError:
                return False
            assert answers[0].status_code in (*good, 503), answers[0].text
            return answers[0].status_code in good

        assert wait_until(ask, TIMEOUT_SECONDS), self.tail()
        return answers[0].json()

    def ended(self, seconds: float = TIMEOUT_SECONDS) -> list[str]:
        """Wait until every request is in a terminal state; says which are not after a long while."""
        query = "SELECT id FROM deletion_requests WHERE finished_at IS NULL"
        left: list[str] = []

        def none_left() -> bool:
            try:
                with self.connect() as connection:
                    left[:] = [f"request {row[0]} does not end" for row in connection.execute(query)]
            except psycopg.Error:
                return False
            return not left

        return [] if wait_until(none_left, seconds) else [*left, self.tail()]

    def missing_callbacks(self, model: str, times: int) -> list[str]:
        """Wait until the model's request has been told of so often."""
        (request_id,) = [r for r, name in self.accepted.items() if name == model]
        enough = wait_until(lambda: len(self.callbacks.calls.get(request_id, [])) >= times, TIMEOUT_SECONDS)
        return [] if enough else [f"request {request_id} was told of fewer than {times} times"]

    def other_bytes(self) -> list[str]:
        """Versions that are not what another run made of the same text under the same policy: a fault shows in them."""
        problems = []
        query = (
            "SELECT m.name, (m.policy - ARRAY['approvals', 'max_wait_seconds'])::text, file ->> 'sha256' "
            "FROM versions v JOIN models m ON m.id = v.model_id, jsonb_array_elements(v.files) file "
            "WHERE v.number = 1 AND file ->> 'path' LIKE 'model/%.safetensors'"
        )
        with self.connect() as connection:
            for model, policy, digest in connection.execute(query).fetchall():
                if model in self._judged:
                    continue
                self._judged.add(model)
                if self._first_weights.setdefault((self._texts.get(model, model), policy), digest) != digest:
                    problems.append(f"version 1 of {model} is not what other runs made of the same text")
        return problems

    def retried(self) -> list[str]:
        """Try every job again that was given up; returns their reasons."""
        query = (
            "SELECT DISTINCT j.id, j.reason FROM jobs j JOIN deletion_requests r ON r.job_id = j.id "
            "WHERE r.status = 'failed'"
        )
        with self.connect() as connection:
            jobs = connection.execute(query).fetchall()
        for job_id, _ in jobs:
            self.running.client.retry_job(str(job_id))
        return [reason for _, reason in jobs]

    # judging

    def settled(self) -> list[str]:
        """What is wrong once everything has come to rest; empty if all is well."""
        last: list[str] = []

        def quiet() -> bool:
            try:
                last[:] = [*self._look(), *self._processes()]
            except (psycopg.Error, OSError, httpx.HTTPError) as error:
                last[:] = [f"cannot look: {type(error).__name__}"]
            return not last

        wait_until(quiet, TIMEOUT_SECONDS)
        return last or self.readable()

    def _look(self) -> list[str]:
        secret = Path(self.running.endpoint["api_key_file"]).read_text()
        storage, url = stored(self.s3, self.data), self.running.endpoint["url"]
        check = Check(database=self.database, storage=storage, url=url, api_key=secret)
        problems = check.problems(self.accepted)
        for request_id in self.accepted:
            calls = self.callbacks.calls.get(request_id, [])
            if not calls:
                problems.append(f"request {request_id}: no callback came")
            for webhook in {w for w, _ in calls}:
                if len({status for w, status in calls if w == webhook}) != 1:
                    problems.append(f"request {request_id}: one callback came with two outcomes")
        return problems

    def _processes(self) -> list[str]:
        problems = [f"a compute child is left: {p.pid}" for p in self.running.processes("worker.child")]
        for name, word in PARTS.items():
            count = len(self.running.processes(word)) - (name == "control")  # its beat bears its command line
            if name in ("api", "valkey", "compute", "control") and count != 1:
                problems.append(f"{count} processes of {name}")
        problems += [f"temporary file {path.name} is left" for path in (self.data / "tmp").iterdir()]
        return [*problems, *(f"{path.name} is halted" for path in self.points.iterdir())]

    def readable(self) -> list[str]:
        """Where a text or an address of a request can be read that should not be."""
        folders = [self.data / name for name in ("logs", "storage", "tmp", "run")]
        if self.s3:
            self.s3.copy(self.data.parent / "bucket")
            folders.append(self.data.parent / "bucket")
        return list(
            personal(self.words, database=self.database, valkey=str(self.sockets / "valkey.sock"), folders=folders)
        )

    def tail(self) -> str:
        """The end of the logs, for a failure's message."""
        logs = sorted((self.data / "logs").glob("*.log"))
        return "\n".join(
            f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in logs if p.name != "postgres.log"
        )
