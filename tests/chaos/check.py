"""The independent checker: reads the database, the storage folder and the API, and nothing of how they came about.

Every function yields sentences about what is wrong; none means that the invariants of ARCHITECTURE hold.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
from psycopg.rows import dict_row
from redis import Redis

TERMINAL = {"completed", "not_memorised", "cancelled", "rejected", "failed"}
ENDED = {"done", "quarantined"}
TABLES = (
    "models", "versions", "jobs", "deletion_requests", "outbox", "certificates", "corpora", "corpus_records",
)  # fmt: skip


class Check:
    """One look at a stack that should be at rest: nothing pending, nothing under way."""

    def __init__(self, *, database: str, storage: Path, url: str, api_key: str) -> None:
        """Look at these."""
        self.storage, self.url = storage, url
        self.headers = {"Authorization": f"Bearer {api_key}"}
        with psycopg.connect(database, row_factory=dict_row) as connection:
            self.tables = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
            count = "SELECT request_id, count(*) AS n FROM records GROUP BY request_id"
            self.records_held = Counter({row["request_id"]: row["n"] for row in connection.execute(count)})
            self.log = connection.execute("SELECT * FROM audit_entries ORDER BY index").fetchall()
        self.entries = [json.loads(bytes(row["entry"])) for row in self.log]
        self.requests = {str(row["id"]): row for row in self.tables["deletion_requests"]}
        self.jobs = {row["id"]: row for row in self.tables["jobs"]}

    def problems(self, accepted: dict[str, str]) -> list[str]:
        """Everything that is wrong, given what was answered 202: request id -> model."""
        parts = (
            self._requests(accepted),
            self._jobs(),
            self._versions(),
            self._folders(),
            self._tree(),
            self._audit(),
            self._persons(),
            self._evidence(),
            self._api(accepted),
            self._outbox(),
        )
        return [sentence for part in parts for sentence in part]

    def _requests(self, accepted: dict[str, str]) -> Iterator[str]:
        for request_id in accepted:
            if request_id not in self.requests:
                yield f"request {request_id} was answered 202 and is not in the database"
        for request_id in self.requests.keys() - accepted.keys():
            yield f"request {request_id} was never answered: it was taken twice, or nobody sent it"
        for request_id, row in self.requests.items():
            if row["status"] not in TERMINAL:
                yield f"request {request_id} is still {row['status']}"
            elif row["finished_at"] is None:
                yield f"request {request_id} is {row['status']} without an end"
            job = self.jobs.get(row["job_id"])
            if (job is None) != (row["status"] == "cancelled" or row["reason"] == "not_covered"):
                yield f"request {request_id} is {row['status']}, in the job {row['job_id']}"
            if row["status"] == "completed":
                of_job = [v["number"] for v in self.tables["versions"] if v["job_id"] == row["job_id"]]
                if of_job != [row["version"]] or row["verdict"] != "PASS":
                    yield f"request {request_id} is completed with {row['verdict']}, {row['version']}, not {of_job}"

    def _jobs(self) -> Iterator[str]:
        versions = Counter(v["job_id"] for v in self.tables["versions"] if v["job_id"])
        for job_id, row in self.jobs.items():
            if row["stage"] not in ENDED:
                yield f"job {job_id} is still at {row['stage']}"
            elif row["owner"] or row["lease_expires_at"]:
                yield f"job {job_id} has ended and is owned by {row['owner']}"
            if versions[job_id] != (row["outcome"] == "passed" and row["stage"] == "done"):
                yield f"job {job_id}, {row['stage']}/{row['outcome']}, has {versions[job_id]} versions"
            if row["stage"] == "done" and not any(r["job_id"] == job_id for r in self.requests.values()):
                yield f"job {job_id} is nobody's"

    def _versions(self) -> Iterator[str]:
        for model in self.tables["models"]:
            rows = sorted(
                (v for v in self.tables["versions"] if v["model_id"] == model["id"]), key=lambda v: v["number"]
            )
            if [v["number"] for v in rows] != list(range(len(rows))):
                yield f"{model['name']} has the versions {[v['number'] for v in rows]}"
            if not rows or model["latest"] != rows[-1]["number"]:
                yield f"latest of {model['name']} is {model['latest']}, which is not its newest version"
            for parent, version in zip([None, *rows], rows, strict=False):
                if version["parent_id"] != (parent["id"] if parent else None):
                    yield f"{model['name']} {version['number']} does not follow the version before it"
                noted = self.storage / "ledger" / "published" / model["name"] / str(version["number"])
                if version["number"] and (not noted.exists() or noted.read_text() != version["digest"]):
                    yield f"{model['name']} {version['number']} is not in the ledger of storage"
        noted = sum(len(list(folder.iterdir())) for folder in (self.storage / "ledger" / "published").iterdir())
        if noted != sum(v["number"] > 0 for v in self.tables["versions"]):
            yield f"the ledger of storage has {noted} versions"

    def _folders(self) -> Iterator[str]:
        known = {v["digest"]: v for v in self.tables["versions"]}
        for folder in (self.storage / "versions").iterdir():
            if folder.name not in known:
                yield f"versions/{folder.name[:12]} has no row"
        for digest, version in known.items():
            folder = self.storage / "versions" / digest
            digests = {}
            for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
                digests[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
            if digests != {entry["path"]: entry["sha256"] for entry in version["files"]}:
                yield f"versions/{digest[:12]} is not what its manifest says"
        for name in ("work", "staging"):
            for left in (self.storage / name).iterdir():
                yield f"{name}/{left.name} is left"

    def _tree(self) -> Iterator[str]:
        if [row["index"] for row in self.log] != list(range(len(self.log))):
            yield "the log has a gap"
        for row in self.log:
            if bytes(row["leaf_hash"]) != hashlib.sha256(b"\0" + bytes(row["entry"])).digest():
                yield f"leaf {row['index']} of the log is not the hash of its entry"

    def _audit(self) -> Iterator[str]:
        counted = Counter((e["kind"], e.get("ref") or e.get("job")) for e in self.entries)
        for row in self.tables["deletion_requests"]:
            if counted["request.accepted", row["ref"]] != 1:
                yield f"request {row['id']} was accepted {counted['request.accepted', row['ref']]} times, says the log"
            if counted["request.cancelled", row["ref"]] != (row["status"] == "cancelled"):
                yield f"request {row['id']} is {row['status']}, and the log does not agree"
        for job_id, row in self.jobs.items():
            expected = {
                "job.batched": 1,
                "version.published": int(row["outcome"] == "passed" and row["stage"] == "done"),
                "job.quarantined": int(row["stage"] == "quarantined"),
            }
            for kind, count in expected.items():
                if counted[kind, str(job_id)] != count:
                    yield f"job {job_id}, {row['stage']}: {counted[kind, str(job_id)]} entries {kind} in the log"

    def _persons(self) -> Iterator[str]:
        places = Counter((row["corpus_id"], row["start"]) for row in self.tables["corpus_records"])
        counted = Counter(row["corpus_id"] for row in self.tables["corpus_records"])
        for row in self.tables["corpora"]:
            if (row["state"], row["records"]) != ("ready", counted[row["id"]]):
                yield f"corpus {row['id']} is {row['state']}, says {row['records']} records, has {counted[row['id']]}"
        if twice := [place for place, count in places.items() if count > 1]:
            yield f"{len(twice)} records are indexed twice"
        resolved = Counter(e["ref"] for e in self.entries if e["kind"] == "request.resolved")
        for row in self.tables["deletion_requests"]:
            expected = (1, 1, 1) if row["subject"] is not None else (0, None, 0)
            counts = (resolved[row["ref"]], row["results_count"], self.records_held[row["id"]] if row["subject"] else 0)
            if counts != expected:
                yield f"request {row['id']} was resolved {counts[0]} times, to {counts[1]} records, holds {counts[2]}"

    def _evidence(self) -> Iterator[str]:
        published = {e["job"]: e for e in self.entries if e["kind"] == "version.published"}
        certified = {e["job"]: e["certificate"] for e in self.entries if e["kind"] == "job.certified"}
        having = {certificate["job_id"] for certificate in self.tables["certificates"]}
        for version in self.tables["versions"]:
            if version["job_id"] and version["job_id"] not in having:
                yield f"version {version['digest'][:12]} has no certificate"
            if version["job_id"] and published.get(str(version["job_id"]), {}).get("manifest") != version["digest"]:
                yield f"version {version['digest'][:12]} is not the one in the log"
        for certificate in self.tables["certificates"]:
            if certified.get(str(certificate["job_id"])) != certificate["digest"]:
                yield f"the certificate of job {certificate['job_id']} is not the last one in the log"

    def _api(self, accepted: dict[str, str]) -> Iterator[str]:
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=30, trust_env=False) as client:
            for request_id in [request_id for request_id in accepted if request_id in self.requests][-3:]:
                answer = client.get(f"/v1/deletion-requests/{request_id}")
                if answer.status_code != 200 or answer.json()["status"] != self.requests[request_id]["status"]:
                    yield f"the API answers {answer.status_code} about request {request_id}"
            for name in list(dict.fromkeys(accepted.values()))[-3:]:
                latest = client.get(f"/v1/models/{name}/versions/latest").json()
                rows = [m["latest"] for m in self.tables["models"] if m["name"] == name]
                if [latest["version"]] != rows:
                    yield f"latest of {name} is {latest['version']} to the API, {rows} in the database"

    def _outbox(self) -> Iterator[str]:
        callbacks_sent = Counter(str(row["request_id"]) for row in self.tables["outbox"] if row["target"] >= 0)
        for row in self.tables["outbox"]:
            if row["delivered_at"] is None:
                yield f"the callback of request {row['request_id']} is not delivered"
        again = Counter(e["ref"] for e in self.entries if e["kind"] == "request.retried")
        for request_id, row in self.requests.items():
            if callbacks_sent[request_id] != row["callbacks"] * (1 + again[row["ref"]]):
                yield f"request {request_id} has {callbacks_sent[request_id]} callbacks"


def personal(words: list[str], *, database: str, valkey: str, folders: list[Path]) -> Iterator[str]:
    """Where a text of a request is readable: in a table (as text or bytes), in the broker, in a file."""
    needles = [word.encode() for word in words] + [word.encode().hex().encode() for word in words]
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for (row,) in connection.execute(f"SELECT t::text FROM {table} t"):
                if hit := [n for n in needles if n in row.encode()]:
                    yield f"table {table} holds a text: ...{row[max(0, row.index(hit[0].decode()) - 60) :][:160]}"
    with Redis(unix_socket_path=valkey) as client:
        for key in client.scan_iter():
            if any(needle in key + (client.dump(key) or b"") for needle in needles):
                yield "the broker holds a text"
    for path in (Path(place, name) for folder in folders for place, _, names in os.walk(folder) for name in names):
        try:
            content = path.read_bytes()
        except OSError:
            continue  # a socket; or it was there while somebody was at work
        if any(needle in content for needle in needles):
            yield f"{path} holds a text"
