"""What only storage in a bucket has to do: copies and their room, locks, keys of others, an absent server."""

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from service import bucket as bucket_module
from service.bootstrap import open_storage
from service.bucket import Bucket
from service.config import Settings
from service.confined import OutsideRoots
from service.domain.errors import StorageAway
from service.storage import objects
from tests import ROOT
from tests.service.storage.test_storage import DIGEST, FILES, OTHER, contents, finish, stage


@pytest.fixture
def storage(bucket_url, tmp_path):
    """Storage in a bucket, on one machine."""
    return open_storage(Settings(storage_dir=tmp_path / "one", storage_url=bucket_url))


@pytest.fixture
def bucket(bucket_url):
    """The same bucket."""
    return Bucket(bucket_url)


def test_what_a_killed_process_left_is_removed_from_its_machine(storage, bucket_url, tmp_path):
    """What a live one computes stays, whoever looks."""
    command = (
        "import sys, signal; from uuid import UUID; from pathlib import Path;"
        "from service.bootstrap import open_storage; from service.config import Settings;"
        "folder = open_storage(Settings(storage_dir=Path(sys.argv[1]), storage_url=sys.argv[2])).work(UUID(int=7), 1);"
        "(folder / 'secret').write_text('x'); print(folder, flush=True); signal.pause()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", command, str(tmp_path / "one"), bucket_url]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            left = Path(process.stdout.readline().strip())
            mine = storage.work(uuid4(), 1)
            assert (left / "secret").exists()
        finally:
            process.kill()
    storage.work(uuid4(), 1)
    assert not left.parent.exists()
    assert mine.is_dir()


def test_a_working_folder_leaves_its_machine_with_the_attempt(storage):
    """The checkpoint of an attempt is in the bucket, not on a machine that computes something else by now."""
    job = uuid4()
    finish(storage.work(job, 1), {"checkpoint-1-0.pt": b"one"})
    storage.keep_work(job, 1)
    storage.leave_work(job, 1)
    assert list((storage._root / "work").iterdir()) == []
    assert contents(storage.work(job, 1)).keys() == {"checkpoint-1-0.pt", "stages.json"}  # it begins again


@pytest.mark.parametrize("name", ["outside", "../../../outside"])
def test_a_child_makes_nobody_upload_what_is_not_its_own(storage, bucket, tmp_path, name):
    """It writes the list of finished files, and may write links."""
    (tmp_path / "one" / "outside").write_text("a key")
    job = uuid4()
    folder = storage.work(job, 1)
    if name == "outside":
        (folder / name).symlink_to(tmp_path / "one" / "outside")
    (folder / "stages.json").write_text(f'{{"inputs": "x", "stages": {{"train": {{"{name}": "0"}}}}}}')
    with pytest.raises(OutsideRoots):
        storage.keep_work(job, 1)
    assert bucket.objects(f"work/{job}") == {}


def test_a_stage_whose_file_was_replaced_meanwhile_is_kept_later(storage, bucket):
    """The list of finished files is uploaded last."""
    job = uuid4()
    folder = storage.work(job, 1)
    finish(folder, {"checkpoint-1-0.pt": b"one", "measure.json": b"1"})
    (folder / "checkpoint-1-0.pt").unlink()
    storage.keep_work(job, 1)
    assert "stages.json" not in bucket.objects(f"work/{job}/1")
    finish(folder, {"checkpoint-1-0.pt": b"one", "measure.json": b"1"})
    storage.keep_work(job, 1)
    written = bucket.objects(f"work/{job}/1")
    assert written.keys() == {"checkpoint-1-0.pt", "measure.json", "stages.json"}
    finish(folder, {"checkpoint-2-0.pt": b"two"})
    storage.keep_work(job, 1)
    assert bucket.objects(f"work/{job}/1").keys() == {"checkpoint-2-0.pt", "stages.json"}


def test_a_crash_between_entry_and_doom_loses_no_files(storage, bucket):
    """The entry was noted as doomed and is still there: only a later collection takes it."""
    storage.publish(stage(storage), DIGEST)
    bucket.put(f"doomed/doomed-1/{DIGEST}", bucket.get(f"entries/{DIGEST}"))
    assert storage.set_aside_before(older_than=-1) == ["doomed-1"]
    storage.remove_set_aside("doomed-1")
    assert contents(storage.release(DIGEST)) == FILES
    assert storage.set_aside_before(older_than=-1) == []


def test_a_collector_that_was_frozen_takes_nothing_that_came_meanwhile(storage, bucket, monkeypatch):
    """Between its note and the entry another one removed the release, and it was published again."""
    storage.publish(stage(storage), DIGEST)
    replace = Bucket.replace

    def frozen(self, key, content, version):
        monkeypatch.setattr(Bucket, "replace", replace)
        storage.remove_set_aside(storage.set_aside(DIGEST))
        storage.publish(stage(storage, {"trust.json": b"again"}), DIGEST)
        return replace(self, key, content, version)

    monkeypatch.setattr(Bucket, "replace", frozen)
    doomed = storage.set_aside(DIGEST)
    assert storage.files(DIGEST).keys() == {"trust.json"}
    storage.restore_set_aside(doomed)
    storage.remove_set_aside(doomed)
    storage.drop_copy(DIGEST)
    assert contents(storage.release(DIGEST)) == {"trust.json": b"again"}
    assert storage.leftovers(older_than=-1) == []


def test_an_entry_without_all_its_files_is_replaced(storage, bucket):
    """By whoever publishes the same release."""
    storage.publish(stage(storage), DIGEST)
    bucket.delete([f"data/{bucket.get(f'entries/{DIGEST}').decode()}/trust.json"])
    storage.publish(stage(storage), DIGEST)
    assert storage.files(DIGEST).keys() == FILES.keys()


def test_an_upload_that_got_no_entry_is_garbage(storage, bucket):
    """Those that have one, or are set aside, are not."""
    for digest in (DIGEST, OTHER):
        storage.publish(stage(storage), digest)
    doomed = storage.set_aside(OTHER)
    bucket.put("data/left/model/config.json", b"{}")
    assert storage.leftovers(older_than=60) == []
    assert storage.leftovers(older_than=-1) == ["data/left"]
    storage.remove_set_aside(storage.set_aside("data/left"))
    storage.remove_set_aside(doomed)
    assert len({path.partition("/")[0] for path in bucket.objects("data")}) == 1


def test_copies_make_room_for_others(storage, monkeypatch):
    """The one that was used longest ago goes first, and none that was used today."""
    disk = namedtuple("disk", "total used free")
    storage.publish(stage(storage), DIGEST)
    storage.publish(stage(storage), OTHER)
    copies = {digest: storage.release(digest) for digest in (DIGEST, OTHER)}
    monkeypatch.setattr(objects.shutil, "disk_usage", lambda _: disk(10_000, 9_000, 1_000))
    third = "f" * 64
    storage.publish(stage(storage), third)
    shutil.rmtree(storage._root / "versions" / third)
    assert storage.release(third).is_dir()
    assert all(copy.is_dir() for copy in copies.values())
    oldest = copies[DIGEST]
    for digest, days in ((DIGEST, 3), (OTHER, 2)):
        os.utime(copies[digest], (time.time() - 86_400 * days,) * 2)
    monkeypatch.setattr(objects.shutil, "disk_usage", lambda _: disk(10_000, 9_000 - 2_000 * (not oldest.exists()), 0))
    shutil.rmtree(storage._root / "versions" / third)
    storage.release(third)
    assert [digest for digest, copy in copies.items() if copy.exists()] == [OTHER]
    assert contents(storage.release(DIGEST)) == FILES  # it comes again


def test_a_copy_that_is_cut_off_is_completed(storage):
    """Its size is not the one in the bucket."""
    storage.publish(stage(storage), DIGEST)
    (storage.release(DIGEST) / "model" / "model.safetensors").write_bytes(b"w")
    assert contents(storage.release(DIGEST)) == FILES


def test_a_damaged_copy_is_made_again(storage):
    """Whoever has seen the damage drops it."""
    storage.publish(stage(storage), DIGEST)
    (storage.release(DIGEST) / "model" / "config.json").write_bytes(b"[]")
    assert storage.drop_copy(DIGEST)
    assert contents(storage.release(DIGEST)) == FILES


def test_the_bucket_hands_files_out_itself(bucket_url, tmp_path):
    """If the settings say so: for a while, to whoever has the address."""
    storage = open_storage(Settings(storage_dir=tmp_path, storage_url=bucket_url, presign_seconds=60))
    storage.publish(stage(storage), DIGEST)
    address = storage.address(DIGEST, "model/model.safetensors")
    assert httpx.get(address, trust_env=False, timeout=60).content == b"weights"
    with pytest.raises(FileNotFoundError):
        storage.address(DIGEST, "nothing")


def test_a_key_that_is_no_plain_path_is_refused(storage, bucket, s3, bucket_url, tmp_path):
    """Whoever computes may write keys; one of them must not become a file elsewhere."""
    import boto3

    job = uuid4()
    prefix = bucket_url.rpartition("/")[2]
    client = boto3.client("s3", endpoint_url=s3["AWS_ENDPOINT_URL"])
    client.put_object(Bucket="unlearnd", Key=f"{prefix}/work/{job}/1/candidate/../../../../../escaped", Body=b"x")
    with pytest.raises(StorageAway):  # obstore itself refuses to list it
        storage.copy_candidate(job, 1, storage.staging("x") / "copy")
    assert not [path for path in tmp_path.rglob("*") if path.name == "escaped"]


def test_a_server_that_is_away_is_no_missing_file(tmp_path, monkeypatch, s3):
    """It is said so, within the time of a few attempts."""
    for name, value in {**s3, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(bucket_module.RETRIES, "max_retries", 1)
    away = open_storage(Settings(storage_dir=tmp_path, storage_url="s3://unlearnd/x"))
    for ask in (lambda: away.release(DIGEST), lambda: away.file(DIGEST, "a"), away.published, away.jobs_present):
        with pytest.raises(StorageAway, match="does not answer"):
            ask()


def test_small_objects_are_made_once_and_replaced_if_unchanged(bucket):
    """Put-if-absent and compare-and-swap, also when the first answer was lost."""
    assert bucket.put_new("a", b"1")
    assert bucket.put_new("a", b"1")
    assert not bucket.put_new("a", b"2")
    content, version = bucket.get_with_version("a")
    assert content == b"1"
    assert bucket.replace("a", b"2", version)
    assert bucket.replace("a", b"2", version)
    assert not bucket.replace("a", b"3", version)
    assert not bucket.replace("a", b"3", None)
    assert bucket.get("a") == b"2"
    assert bucket.replace("b", b"1", None)
