"""Keys are rotated, replaced and revoked while the service runs."""

import hashlib
import json
import re
import subprocess
import sys

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from service.audit.trust import parse_trust
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import verify
from service.db.log_tables import AuditEntry
from service.domain.states import CONTROL_STAGES
from service.lease import hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from tests.service.conftest import only_model, submit
from tests.service.jobs import age, certified, expire, published, release_folder, to_certify
from tests.service.served import environment
from worker import tasks
from worker.tasks import certify_and_publish, work_under_lease


@pytest.fixture
def keys(services, tmp_path):
    """Run `unlearnd keys ...` as an operator."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "service.cli", "keys", *arguments]
        return subprocess.run(command, env=environment(services), capture_output=True, text=True, check=False)

    return run


@pytest.mark.slow
def test_keys_are_rotated_and_revoked_while_the_service_runs(api, services, model, keys, tmp_path):
    """Old releases count after rotation and not after revocation; new ones are signed by the new key; all is logged."""
    published(api, services, "a record")
    old = {role: services.keyring.path(role).read_bytes() for role in ("certificate", "release", "log", "receipt")}
    for role, pem in old.items():
        done = keys("rotate", role)
        assert done.returncode == 0, done.stderr
        assert re.search(r"[0-9a-f]{64}", done.stderr)
        assert services.keyring.path(role).read_bytes() != pem
        assert services.keyring.path(role).stat().st_mode & 0o077 == 0
    published(api, services, "another")
    trust = tmp_path / "trust.json"

    def verdicts() -> list[int]:
        trust.write_bytes(api.get("/v1/log/trust").content)
        exit_codes = []
        for number in (1, 2):
            try:
                verify(release_folder(api, services, number), trust)
                exit_codes.append(0)
            except VerificationError as error:
                exit_codes.append(int(error.code))
        return exit_codes

    assert verdicts() == [0, 0]
    shown = keys("trust")
    assert hashlib.sha256(shown.stdout.encode()).hexdigest() in shown.stderr
    listed = json.loads(shown.stdout)["keys"]
    assert sorted(k["role"] for k in listed) == sorted([*old, *old])
    (retired,) = [k["keyid"] for k in listed if k["role"] == "certificate" and k.get("retired_at")]
    assert keys("distrust", retired).returncode == 0
    assert verdicts() == [ExitCode.UNTRUSTED_KEY, 0]
    (current,) = [k["keyid"] for k in listed if k["role"] == "certificate" and not k.get("retired_at")]
    assert keys("distrust", current).returncode == 0
    published(api, services, "a third")
    assert verdicts() == [ExitCode.UNTRUSTED_KEY] * 2
    verify(release_folder(api, services, 3), trust)
    with services.db.reading() as session:
        kinds = [json.loads(e)["kind"] for e in session.scalars(select(AuditEntry.entry))]
    assert (kinds.count("key.rotated"), kinds.count("key.revoked")) == (4, 2)
    for wrong in (("rotate", "kek"), ("distrust", "0" * 64)):
        assert keys(*wrong).returncode == 2


def test_a_log_key_that_was_replaced_signs_the_same_log_again(api, services, model, keys):
    """Nothing new happened, but the old signature may count no more: the newest checkpoint is signed by today's key."""
    submit(api)
    note, before = services.log.sign(), services.log.tree()
    assert keys("rotate", "log").returncode == 0
    newer, after = services.log.sign(), services.log.tree()
    assert after.subtree(0, before.size) == before.root
    assert newer != note
    assert services.log.sign() == newer


@pytest.mark.parametrize("when", ["before certifying", "before publishing"])
@pytest.mark.parametrize("role", ["certificate", "release", "log"])
def test_a_key_that_is_replaced_while_a_job_waits(api, services, model, when, role, tmp_path):
    """The attempt may fail, the next one certifies again: the version comes, and verifies by its own trust and ours."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    to_certify(services, job_id)
    if when == "before publishing":
        with hold_job(services, job_id, CONTROL_STAGES) as lease:
            certify_job(services, job_id, lease.fence)
        expire(services, job_id)
    (current,) = [k["keyid"] for k in json.loads(services.keyring.trust())["keys"] if k["role"] == role]
    services.keyring.revoke(current)
    for _ in range(2):
        age(services, not_before=None)
        work_under_lease(services, job_id, CONTROL_STAGES, certify_and_publish)
    folder = release_folder(api, services)
    verify(folder)
    (tmp_path / "trust.json").write_bytes(services.keyring.trust())
    verify(folder, tmp_path / "trust.json")


def test_the_collection_renews_what_the_trust_has_left(services, monkeypatch):
    """A worker that may write to the keys does it; one that may not says so, and goes on to sign the log."""
    monkeypatch.setattr(tasks, "get_services", lambda: services)
    path = services.settings.keys_dir / "trust.json"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"expires": "2001-01-01T00:00:00+00:00"}))
    tasks.collect()
    renewed = json.loads(path.read_bytes())
    assert (renewed["version"], renewed["keys"]) == (content["version"] + 1, content["keys"])
    assert renewed["expires"] >= content["expires"]
    path.write_text(json.dumps(content | {"expires": "2001-01-01T00:00:00+00:00"}))
    lock = path.with_name("lock")
    lock.unlink()
    lock.mkdir()  # nobody can open it for writing, root neither
    with capture_logs() as logged:
        tasks.collect()
    assert [line["event"] for line in logged if line["log_level"] == "error"] == [
        "trust.json is not renewed: run `unlearnd keys init`"
    ]
    assert services.log.checkpoint()


def test_the_issuers_own_keys_do_not_expire_for_it(api, services, model):
    """It publishes and takes up its own versions, though its trust.json has expired and could not be renewed."""
    path = services.settings.keys_dir / "trust.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"expires": "2001-01-01T00:00:00+00:00"}))
    published(api, services, "a record")
    folder = release_folder(api, services)
    verify(folder, parse_trust(services.keyring.trust()))
    with pytest.raises(VerificationError, match="expired"):
        verify(folder, path)


def test_a_trust_that_was_renewed_while_a_job_waits(api, services, model):
    """The job is certified again, so that the release has the newest trust.json."""
    submit(api)
    job_id = batch_requests(services, only_model(services))
    certified(services, job_id)
    expire(services, job_id)
    path = services.settings.keys_dir / "trust.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"expires": "2001-01-01T00:00:00+00:00"}))
    services.keyring.renew()
    age(services, not_before=None)
    work_under_lease(services, job_id, CONTROL_STAGES, certify_and_publish)
    folder = release_folder(api, services)
    assert (folder / "trust.json").read_bytes() == path.read_bytes()
    verify(folder, path)
