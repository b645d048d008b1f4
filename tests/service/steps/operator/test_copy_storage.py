"""A storage brought up to another one: from a folder to a bucket and back."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from service.audit.checkpoint import read_checkpoint
from service.bootstrap import open_log_memory, open_storage
from service.config import Settings
from service.db import log_entries
from service.domain.errors import Conflict
from service.evidence.log_keeper import LogKeeper
from service.steps.operator.copy_storage import copy_storage
from tests import ROOT
from tests.service.served import environment
from tests.service.storage.test_storage import DIGEST, FILES, OTHER, contents, finish, stage


@pytest.fixture
def place(tmp_path, bucket_url):
    """Settings with a storage of that name, in a folder or in a bucket."""

    def make(name: str, *, bucket: bool) -> Settings:
        return Settings(storage_dir=tmp_path / name, storage_url=f"{bucket_url}/{name}" if bucket else "")

    return make


def copy(source: Settings, target: Settings) -> list[tuple[str, int, int]]:
    """Copy; what was said of it."""
    said = []
    storages, logs = map(open_storage, (source, target)), map(open_log_memory, (source, target))
    (one, two), (log, other) = storages, logs
    copy_storage(one, log, two, other, lambda *what: said.append(what))
    return said


def signed(services, settings: Settings, count: int) -> LogKeeper:
    """Append so many entries, and sign the log into the memory of these settings."""
    with services.db.transaction() as session:
        for number in range(count):
            log_entries.append(session, "log.begun_anew", previous=str(number))
    keeper = LogKeeper(services.db, open_log_memory(settings), services.keyring, services.log.origin)
    keeper.sign()
    return keeper


@pytest.mark.parametrize("to_bucket", [True, False])
def test_everything_but_working_folders_is_brought_over(services, place, to_bucket):
    """And again, when there is more; what was removed from a release and came back comes after."""
    source, target = place("one", bucket=not to_bucket), place("two", bucket=to_bucket)
    one = open_storage(source)
    request, epoch, job = uuid4(), uuid4(), uuid4()
    one.publish(stage(one), DIGEST)
    digest, _ = one.add_reference_texts([b"a\n"])
    one.add_published("tiny", 1, DIGEST)
    one.add_withdrawn("tiny", 1, "faulty")
    one.add_purged(request, epoch)
    finish(one.work(job, 1), {"checkpoint-1-0.pt": b"secret"})
    one.keep_work(job, 1)
    signed(services, source, 300)
    said = copy(source, target)
    assert {what for what, _, _ in said} == {"reference texts", "releases", "ledger", "files of the log"}
    two = open_storage(target)
    assert contents(two.release(DIGEST)) == FILES
    assert two.reference_texts(digest).read_bytes() == b"a\n"
    assert (two.published(), two.withdrawn()) == ({("tiny", 1): DIGEST}, {("tiny", 1): "faulty"})
    assert (two.purged(), two.purged_epochs()) == ([request], [epoch])
    assert two.jobs_present() == []
    one.publish(stage(one, {"trust.json": b"{}"}), OTHER)
    two.remove_files(DIGEST, ["trust.json"])
    keeper = signed(services, source, 300)
    copy(source, target)
    assert contents(two.release(OTHER)) == {"trust.json": b"{}"}
    assert two.files(DIGEST).keys() == FILES.keys()
    moved = LogKeeper(services.db, open_log_memory(target), services.keyring, services.log.origin)
    assert moved.checkpoint() == keeper.checkpoint()
    assert moved.missing_entries(compare_all=True)[1] == []
    assert read_checkpoint(moved.sign()).size >= 600


def test_a_newer_log_is_not_replaced(services, place):
    """Nothing is copied then: it would be an old backup over a live storage."""
    source, target = place("one", bucket=False), place("two", bucket=True)
    one = open_storage(source)
    signed(services, source, 3)
    copy(source, target)
    signed(services, target, 3)
    one.publish(stage(one), DIGEST)
    with pytest.raises(Conflict, match="newer"):
        copy(source, target)
    assert open_storage(target).releases() == {}


def test_the_command_copies_to_a_bucket_and_back(services, model, bucket_url, tmp_path):
    """With progress on standard error; the copy serves."""
    services.log.sign()
    program = Path(sys.executable).with_name("unlearnd")
    variables = environment(services) | {"PYTHONPATH": str(ROOT)}
    there = [str(program), "storage", "copy", bucket_url]
    done = subprocess.run(there, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "releases" in done.stderr
    back = [str(program), "storage", "copy", str(tmp_path / "back")]
    variables |= {"UNLEARND_STORAGE_URL": bucket_url, "UNLEARND_STORAGE_DIR": str(tmp_path / "machine")}
    done = subprocess.run(back, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    copied = open_storage(Settings(storage_dir=tmp_path / "back"))
    for digest in services.storage.releases():
        assert contents(copied.release(digest)) == contents(services.storage.release(digest))
    assert list(copied.releases()) == list(services.storage.releases()) != []
