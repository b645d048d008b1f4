"""What storage promises, whether it is a folder that all share or a bucket: each machine sees what another did."""

import json
import os
import threading
from uuid import uuid4

import pytest

from service.files import file_sha256

DIGEST, OTHER = "d" * 64, "e" * 64
LARGE = os.urandom(20 << 20)  # three parts of an upload, one of a download
FILES = {
    "model/model.safetensors": b"weights",
    "model/config.json": b"{}",
    "trust.json": b"",
    "a b#ü%.txt": b"x",
}


@pytest.fixture
def one(machine):
    """A machine."""
    return machine("one")


@pytest.fixture
def two(machine):
    """Another one."""
    return machine("two")


def stage(storage, files=FILES):
    """A staged folder with these files."""
    folder = storage.staging(str(uuid4()))
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def contents(folder) -> dict[str, bytes]:
    """Path -> content of the files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_is_whole_on_every_machine(one, two):
    """With all its files, and byte for byte; before, there is none."""
    assert one.files(DIGEST) == {}
    assert not two.file(DIGEST, "trust.json").exists()
    files = {**FILES, "large": LARGE}
    one.publish(stage(one, files), DIGEST)
    assert two.file(DIGEST, "model/config.json").read_bytes() == b"{}"
    assert not two.file(DIGEST, "nothing").exists()
    assert contents(two.release(DIGEST)) == contents(one.release(DIGEST)) == files
    stored = two.files(DIGEST)
    assert {path: file.size for path, file in stored.items()} == {path: len(data) for path, data in files.items()}
    assert all(0 <= file.age < 60 for file in stored.values())
    assert b"".join(two.parts(DIGEST, "large")) == LARGE
    assert list(two.parts(DIGEST, "trust.json")) == []
    with pytest.raises(FileNotFoundError):
        list(two.parts(DIGEST, "nothing"))


def test_a_release_is_made_once_by_those_who_publish_it_at_the_same_time(one, two):
    """And whoever reads meanwhile sees all of it or nothing."""
    barrier, seen = threading.Barrier(3), []

    def publish(storage):
        staged = stage(storage)
        barrier.wait(10)
        storage.publish(staged, DIGEST)

    threads = [threading.Thread(target=publish, args=(storage,)) for storage in (one, two)]
    for thread in threads:
        thread.start()
    barrier.wait(10)
    while any(thread.is_alive() for thread in threads):
        seen.append(frozenset(one.files(DIGEST)))
    for thread in threads:
        thread.join()
    assert {*seen, frozenset(one.files(DIGEST))} <= {frozenset(), frozenset(FILES)}
    assert list(one.releases()) == [DIGEST]
    assert contents(two.release(DIGEST)) == FILES
    assert one.leftovers(older_than=-1) == []  # no second upload is left


def test_what_is_published_already_stays(one, two):
    """And the second copy of it goes."""
    one.publish(stage(one), DIGEST)
    two.publish(stage(two), DIGEST)
    assert contents(one.release(DIGEST)) == FILES
    assert two.leftovers(older_than=-1) == []


def test_files_of_a_release_go_and_come_back(one, two):
    """On the machine that removed them and on the others."""
    one.publish(stage(one), DIGEST)
    one.remove_files(DIGEST, ["model/model.safetensors", "nothing"])
    assert two.files(DIGEST).keys() == FILES.keys() - {"model/model.safetensors"}
    assert not two.file(DIGEST, "model/model.safetensors").exists()
    source = stage(two, {"again": b"weights"}) / "again"
    two.add_file(DIGEST, "model/model.safetensors", source)
    assert contents(one.release(DIGEST)) == FILES


def test_what_was_set_aside_is_gone_or_comes_back(one, two):
    """A release that was published again meanwhile is not touched."""
    for digest in (DIGEST, OTHER):
        one.publish(stage(one), digest)
    gone, back = one.set_aside(DIGEST), one.set_aside(OTHER)
    assert not two.files(DIGEST)
    assert not two.release(OTHER).exists()
    assert two.set_aside_before(older_than=60) == []
    assert set(two.set_aside_before(older_than=-1)) == {gone, back}
    assert two.releases_aside(back) == [OTHER]
    two.restore_set_aside(back)
    two.remove_set_aside(back)
    assert contents(one.release(OTHER)) == FILES
    two.publish(stage(two, {"trust.json": b"newer"}), DIGEST)
    two.remove_set_aside(gone)
    assert contents(two.release(DIGEST)) == {"trust.json": b"newer"}
    assert two.set_aside_before(older_than=-1) == []


def test_what_nobody_names_is_listed_by_its_age(one, two):
    """Staged folders of this machine, and reference texts."""
    digest, count = one.add_reference_texts([b"a\n", b"b\n"])
    assert count == 2
    assert two.reference_texts(digest).read_bytes() == b"a\nb\n"
    stage(two)
    assert two.leftovers(older_than=60) == []
    names = two.leftovers(older_than=-1)
    assert [name for name in names if name.startswith("corpora/")] == [f"corpora/{digest}"]
    for name in names:
        two.remove_set_aside(two.set_aside(name))
    assert two.leftovers(older_than=-1) == []
    assert not one.reference_texts(digest).exists()


def finish(folder, outputs: dict[str, bytes], more: dict[str, bytes] | None = None) -> None:
    """Write files as a compute child does, and the list of those that are finished."""
    for path, content in {**outputs, **(more or {})}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    stages = {"train": {path: file_sha256(folder / path) for path in outputs}}
    (folder / "stages.json").write_text(json.dumps({"inputs": "x", "stages": stages}))


def test_another_machine_goes_on_where_an_attempt_ended(one, two, machine):
    """It has what that one finished, and not what it did later; the job can be discarded anywhere."""
    job = uuid4()
    folder = one.work(job, 1)
    finish(folder, {"measure.json": b"1", "checkpoint-1-0.pt": b"one"})
    one.keep_work(job, 1)
    (folder / "checkpoint-1-0.pt").unlink()
    finish(folder, {"measure.json": b"1", "checkpoint-2-0.pt": b"two"}, {"unfinished": b""})
    one.keep_work(job, 1)
    second = two.work(job, 2)
    earlier = second.with_name("1")
    assert contents(earlier).keys() - {"unfinished"} == {"measure.json", "checkpoint-2-0.pt", "stages.json"}
    finish(second, {"candidate/model/w": b"w", "candidate/change/c": b"c"})
    two.keep_work(job, 2)
    two.leave_work(job, 2)
    assert contents(machine("three").work(job, 3).with_name("2")).keys() >= {"candidate/model/w"}
    assert one.jobs_present() == [job]
    target = one.staging("copy") / "copy"
    one.copy_candidate(job, 2, target)
    assert contents(target) == {"model/w": b"w", "change/c": b"c"}
    one.discard_job(job)
    assert two.jobs_present() == []


def test_what_control_certified_is_there_for_another_control_worker(one, two):
    """Until the job is discarded."""
    job = uuid4()
    staged = stage(one)
    folder = one.staging(f"{job}/1")
    staged.rename(folder / "copy")
    assert not two.certified(job, "c").exists()
    one.keep_certified(job, "c", folder / "copy")
    assert contents(two.certified(job, "c")) == contents(one.certified(job, "c")) == FILES
    one.discard_job(job)
    two.discard_job(job)
    assert not two.certified(job, "c").exists()


def test_the_ledger_is_one(one, two):
    """Each machine reads what the other wrote; an entry is written once or again, and stays the same."""
    request, epoch = uuid4(), uuid4()
    for _ in range(2):
        one.add_published("tiny", 1, DIGEST)
        one.add_withdrawn("tiny", 1, "faulty")
        one.add_purged(request, epoch)
        assert two.has_published("tiny", 1)
        assert not two.has_published("tiny", 2)
        assert two.published() == {("tiny", 1): DIGEST}
        assert two.withdrawn() == {("tiny", 1): "faulty"}
        assert two.refused_withdrawals() == 0
        assert (two.purged(), two.purged_epochs()) == ([request], [epoch])
    one.note_scrubbed(DIGEST, ["a", "b"])
    assert two.scrubbed()[DIGEST][1] == ["a", "b"]
    two.note_scrubbed(DIGEST, [])
    age, damaged = one.scrubbed()[DIGEST]
    assert damaged == []
    assert -5 < age < 60
    one.forget_scrubbed(DIGEST)
    assert two.scrubbed() == {}
