"""`unlearnd doctor`: finds faults of an installation, and names a remedy for each.

The doctor reads the database, storage, keys and broker, and changes nothing.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from cryptography.exceptions import InvalidTag
from kombu import Connection
from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.audit.trust import ROLES
from service.bootstrap import KEK, Services, open_bucket, storage_folder
from service.collected import rebuildable
from service.db import compute_workers, diagnostics, due_requests, models
from service.db.forecast import backlogs
from service.doctor.database import CHECKS as DATABASE_CHECKS
from service.doctor.database import schema
from service.doctor.finding import Finding
from service.domain.errors import NotFound, StorageAway
from service.explain import STORAGE_AWAY
from service.privacy.envelope import HASH_KEYS, DataKey
from service.privacy.kms import HASH_KEY

ROOM_BYTES = 2**30  # the least free space in storage


def examine(services: Services, *, now: datetime | None = None) -> list[Finding]:
    """Run every check; checks that need the database are skipped if it does not answer or has another schema."""
    findings = [*_keys(services), *_trust(services), *_broker(services), *_storage(services)]
    findings += _with_storage(_bucket(services))
    try:
        with services.db.reading() as session:
            schema_findings = list(schema(session, services))
            findings += schema_findings
            if not schema_findings:
                for check in (*DATABASE_CHECKS, *CHECKS):
                    findings += _with_storage(check(session, services, now or datetime.now(UTC)))
    except OperationalError as error:
        problem = f"The database does not answer ({type(error.orig).__name__})."
        findings.append(Finding("database", problem, "Start PostgreSQL."))
    return list(dict.fromkeys(findings))  # several checks look at storage


def _with_storage(check: Iterator[Finding]) -> Iterator[Finding]:
    """What a check finds, and that the storage in which it looks does not answer."""
    try:
        yield from check
    except StorageAway as error:
        yield Finding("storage", str(error), STORAGE_AWAY)


def _keys(services: Services) -> Iterator[Finding]:
    """Every key file exists, and only its owner can read it."""
    folder = services.settings.keys_dir
    wrapping = (HASH_KEY,) if services.settings.kms_key_id else (KEK, HASH_KEYS)
    for name in (*wrapping, *(f"{role}.pem" for role in ROLES)):
        path = folder / name
        if not path.exists():
            remedy = "Restore it from your backup of the keys."
            if name in wrapping:
                remedy += " A new key cannot replace it."
            else:
                remedy += " If it never existed, run `unlearnd keys init`."
            yield Finding("keys", f"{path} is missing.", remedy)
        elif stat.S_IMODE(path.stat().st_mode) & _others(path):
            yield Finding(
                "keys", f"{path} can be read by others.", f"Run chmod 600 {path}, and treat the key as known to others."
            )


def _others(path: Path) -> int:
    """The bits of a mode that let others read a key. A file of a Secret is root's, and this process is in its group."""
    return 0o037 if path.stat().st_uid == 0 != os.geteuid() else 0o077


def _trust(services: Services) -> Iterator[Finding]:
    """`trust.json` was renewed in time."""
    if services.keyring.must_renew():
        problem = "trust.json is not renewed: auditors will refuse it when it expires."
        yield Finding("trust", problem, "Run `unlearnd keys init`, restart the API, and publish the new trust.json.")


def _broker(services: Services) -> Iterator[Finding]:
    """The broker answers."""
    try:
        with Connection(services.settings.broker_url, transport_options={"socket_connect_timeout": 2}) as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except (BrokerAway, OSError):
        problem = "The broker does not answer. Until it does, only the sweep finds work, and finds it later."
        yield Finding("broker", problem, "Start Valkey or Redis.")


def _storage(services: Services) -> Iterator[Finding]:
    """Storage is writable and has free space."""
    root = storage_folder(services.settings)
    probe = root / "staging" / ".doctor"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding("storage", f"{root} cannot be written to ({error.strerror}).", "Mount it writable for this user.")
        return  # missing content is the finding of later checks
    free = shutil.disk_usage(root).free
    if free < ROOM_BYTES:
        remedy = "Free some space: a job needs three times the size of its model."
        yield Finding("storage", f"Only {free >> 20} MiB are free on {root}.", remedy)


def _bucket(services: Services) -> Iterator[Finding]:
    """The bucket refuses a write whose condition does not hold: all that is published rests on it."""
    bucket, key = open_bucket(services.settings), f"probe/{uuid4()}"
    if bucket is None:
        return
    try:
        if not bucket.put_new(key, b"first") or bucket.put_new(key, b"second") or bucket.get(key) != b"first":
            problem = "The object storage writes over an object although the write says that there must be none."
            yield Finding("storage", problem, "Use a server with conditional writes (If-None-Match and If-Match).")
    finally:
        bucket.delete([key])


def _sealed(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    """The key-encryption key opens the newest request."""
    newest = diagnostics.newest_sealed_request(session)
    try:
        if newest is not None:
            DataKey.unwrap(newest[0], newest[1], services.wrapper)
    except NotFound:
        problem = "The epoch key of the newest request is missing, so nobody can read its texts."
        yield Finding("keys", problem, "Restore the folder of epoch keys, or run `unlearnd reconcile` after a restore.")
    except (InvalidTag, OSError, ValueError):
        problem = "The key-encryption key does not open the newest request."
        yield Finding("keys", problem, "Restore the kek that sealed it from your backup of the keys.")


def _versions(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    """Storage has the files of the newest versions, and the database has every version that storage lists."""
    for name, number, digest, files in diagnostics.versions_on_disk(session, newest=diagnostics.NEWEST):
        stored, collectable = services.storage.files(digest), rebuildable(files)
        expected = [file for file in files if file["path"] in stored or file["path"] not in collectable]
        sizes = {path: file.size for path, file in stored.items()}
        damaged = next((f["path"] for f in expected if sizes.get(f["path"]) != f["size"]), None)
        if damaged:
            problem = f"{name} {number}: {damaged} is missing or has another size."
            yield Finding("versions", problem, f"Restore versions/{digest} from a backup of storage.")
    for digest, (_age, changed) in services.storage.scrubbed().items():
        if changed:
            problem = f"{len(changed)} files of versions/{digest} are not those that were published: {changed[0]}."
            remedy = (
                "Copy the good bytes from a backup of storage over the file, because other versions may share it. "
                "Then remove its file in scrubbed/, and look at the disk."
            )
            yield Finding("versions", problem, remedy)
    for (name, number), digest in services.storage.published().items() - models.published(session).items():
        problem = f"Storage lists {name} {number} ({digest[:12]}), but the database, an older backup, does not."
        yield Finding("ledger", problem, "Run unlearnd reconcile.")
    if refused := services.storage.refused_withdrawals():
        problem = f"{refused} withdrawals in storage's ledger have no known reason, and are not believed."
        yield Finding("ledger", problem, "Find out who wrote these files of ledger/withdrawn, and remove them.")


def _corpora(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    """Storage has the reference texts of every model."""
    for digest in models.reference_text_digests(session):
        if not services.storage.reference_texts(digest).is_file():
            problem = f"The reference texts corpora/{digest[:12]} are missing."
            yield Finding("corpora", problem, "Restore them from a backup of storage.")


def _subjects(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """Every corpus is indexed, and every request can be searched for in the corpora."""
    remedy = "Run unlearnd corpora remove, repair the files of the corpus, and run unlearnd corpora add."
    for model, corpus, reason in diagnostics.failed_corpora(session):
        yield Finding("subjects", f"The corpus {corpus} of {model} could not be indexed: {reason}.", remedy)
    for reason, count in diagnostics.unsearchable(session):
        yield Finding("subjects", f"{count} requests cannot be looked up: {reason}.", remedy)


def _work(session: Session, services: Services, _: datetime) -> Iterator[Finding]:
    """Workers take jobs and batch requests, and no job is quarantined."""
    settings = services.settings
    for job_id in diagnostics.abandoned_jobs(session, 3 * settings.lease_seconds):
        problem = f"No worker has held job {job_id} for a long time."
        yield Finding("leases", problem, "Start workers: unlearnd worker (compute), unlearnd control.")
    largest = compute_workers.largest_slot(session, settings.sweep_seconds)
    for job_id, memory in diagnostics.outgrown(session, largest):
        problem = f"Job {job_id} does not fit into {memory / 1e9:.0f} GB, and no living worker has a larger slot."
        yield Finding("workers", problem, "Start a compute worker with more memory: unlearnd plan says how much.")
    for job_id, reason in diagnostics.quarantined_jobs(session):
        problem = f"Job {job_id} is quarantined ({reason}); its requests have failed."
        yield Finding("jobs", problem, f"Remove the cause, then run unlearnd jobs retry {job_id}.")
    waiting = diagnostics.unbatched(session, settings.max_wait_seconds + 10 * settings.sweep_seconds)
    if waiting:
        problem = f"{waiting} requests still wait for a batch although their batching window has passed."
        yield Finding("batching", problem, "Start a control worker: unlearnd control.")


def _deadlines(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """No request that is open, or failed and not resolved, is past its deadline."""
    overdue, oldest = due_requests.overdue(session)
    if overdue:
        problem = f"{overdue} requests are past their deadline, the oldest since {oldest:%Y-%m-%d}."
        yield Finding(
            "deadlines",
            problem,
            "Start workers for those that are open; retry or resolve those in unlearnd requests list --status failed.",
        )


def _capacity(session: Session, _: Services, __: datetime) -> Iterator[Finding]:
    """What waits will be dealt with in time if jobs go on as they do."""
    for model, waiting, _rate, ends_at, late, _days in backlogs(session, diagnostics.NEWEST):
        if late:
            problem = (
                f"{late} of {waiting} requests for {model} will be late; the last ends at {ends_at:%Y-%m-%d %H:%M} UTC."
            )
            yield Finding("capacity", problem, "Raise max_batch_records, use a faster device, or extend deadlines.")


CHECKS: tuple[Callable[[Session, Services, datetime], Iterator[Finding]], ...] = (
    _sealed,
    _versions,
    _corpora,
    _subjects,
    _work,
    _deadlines,
    _capacity,
)
