"""Epoch keys: what they wrapped opens until they are destroyed, and a new key-encryption key changes nothing."""

import stat
from uuid import uuid4

import pytest
from cryptography.exceptions import InvalidTag

from service.domain.errors import NotFound
from service.privacy import epochs
from service.privacy.envelope import FileKeyWrapper
from service.privacy.epochs import EpochKeys, wrapping_epoch

CONTEXT = b"a request"


@pytest.fixture
def master(tmp_path):
    """A key-encryption key in a file."""
    made = FileKeyWrapper(tmp_path / "kek")
    made.create()
    return made


@pytest.fixture
def make(master, tmp_path):
    """Makes the epoch keys of another process on the same folder; `registered` gets the epochs."""
    (tmp_path / "epochs").mkdir(exist_ok=True)
    registered = []

    def process(seconds: float = 60) -> EpochKeys:
        keys = EpochKeys(FileKeyWrapper(tmp_path / "kek"), tmp_path / "epochs", seconds, registered.append)
        keys.registered = registered
        return keys

    return process


def test_every_process_opens_what_one_wrapped_until_the_key_is_destroyed(make):
    """Also what was wrapped before there were epochs; nothing opens in another context."""
    one, other = make(), make()
    wrapped = one.wrap(b"data key", CONTEXT)
    assert one.registered == [wrapping_epoch(wrapped)]
    assert other.unwrap(wrapped, CONTEXT) == b"data key"
    with pytest.raises(InvalidTag):
        other.unwrap(wrapped, b"another request")
    old = one.master.wrap(b"old data key", CONTEXT)
    assert (wrapping_epoch(old), other.unwrap(old, CONTEXT)) == (None, b"old data key")
    one.destroy(wrapping_epoch(wrapped))
    for process in (one, make()):
        with pytest.raises(NotFound):
            process.unwrap(wrapped, CONTEXT)


def test_the_file_of_a_destroyed_key_was_overwritten(make, tmp_path):
    """A hard link shows the bytes that lay on the disk. No key was ever readable by others."""
    keys = make()
    wrapped = keys.wrap(b"data key", CONTEXT)
    (file,) = (tmp_path / "epochs").glob("*.key")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    (tmp_path / "link").hardlink_to(file)
    keys.destroy(wrapping_epoch(wrapped))
    assert not file.exists()
    assert len((tmp_path / "link").read_bytes()) == len(before)
    assert (tmp_path / "link").read_bytes() != before


def test_an_epoch_ends_after_its_time_or_its_number_of_keys_or_by_a_command(make, monkeypatch):
    """Data keys after that are wrapped under another key."""
    monkeypatch.setattr(epochs, "MAX_DATA_KEYS", 3)
    keys = make()
    held = [wrapping_epoch(keys.wrap(b"k", CONTEXT)) for _ in range(8)]
    assert [held.count(epoch) for epoch in dict.fromkeys(held)] == [3, 3, 2]
    keys = make()
    first = wrapping_epoch(keys.wrap(b"k", CONTEXT))
    assert wrapping_epoch(keys.wrap(b"k", CONTEXT)) == first
    keys.end_present()
    assert wrapping_epoch(keys.wrap(b"k", CONTEXT)) != first
    short = make(seconds=-1)
    assert wrapping_epoch(short.wrap(b"k", CONTEXT)) != wrapping_epoch(short.wrap(b"k", CONTEXT))


def test_the_present_epoch_has_room_only_while_its_key_is_in_memory(make, monkeypatch):
    """Otherwise a data key would wait for a file, and for the KMS. Other epochs' keys go from memory first."""
    monkeypatch.setattr(epochs, "MAX_OPEN", 2)
    keys, other = make(), make()
    assert not keys.has_room()
    keys.wrap(b"k", CONTEXT)
    assert keys.has_room()
    for _ in range(3):
        keys.unwrap(other.wrap(b"k", CONTEXT), CONTEXT)
        other.end_present()
    assert keys.has_room()
    keys.end_present()
    assert not keys.has_room()


def test_a_cut_line_of_moved_keys_is_skipped(make, tmp_path):
    """A crash may cut it; the database still has the earlier key then. The newest note of a request counts."""
    keys = make()
    request = uuid4()
    epochs = [keys.begin(), keys.begin()]
    keys.note_moved(epochs[0], [(request, b"1")])
    keys.note_moved(epochs[0], [(request, b"2")])
    with (tmp_path / "epochs" / f"{epochs[1]}.moved").open("w") as handle:
        handle.write('["cut')
    assert keys.moved() == {request: b"2"}


def test_a_new_key_encryption_key_opens_everything_and_the_old_one_nothing(make, master, tmp_path):
    """In processes that ran all the time, and in new ones; keyed hashes stay the same."""
    running = make()
    wrapped = running.wrap(b"data key", CONTEXT)
    hashes = [running.keyed_hash(purpose, b"x") for purpose in ("body", "webhook", "another")]
    (tmp_path / "old").write_bytes((tmp_path / "kek").read_bytes())
    assert make().rewrap(running.master.begin_rotation(), running.master.end_rotation) == 1
    for process in (running, make()):
        assert process.unwrap(wrapped, CONTEXT) == b"data key"
        assert [process.keyed_hash(purpose, b"x") for purpose in ("body", "webhook", "another")] == hashes
        assert make().unwrap(process.wrap(b"another", CONTEXT), CONTEXT) == b"another"
    old = EpochKeys(FileKeyWrapper(tmp_path / "old"), tmp_path / "epochs", 60, lambda _: None)
    with pytest.raises(InvalidTag):
        old.unwrap(wrapped, CONTEXT)
    assert {path.name for path in tmp_path.iterdir()} == {"kek", "hash-keys", "epochs", "old"}


@pytest.mark.parametrize("stop", ["begun", "half", "replaced"])
def test_a_rotation_that_was_killed_goes_on(make, tmp_path, stop):
    """At any point everything opens, and a second call ends it."""
    running = make()
    wrapped = [running.wrap(b"data key", CONTEXT)]
    running.end_present()
    wrapped.append(running.wrap(b"data key", CONTEXT))

    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    new = running.master.begin_rotation()
    if stop == "half":
        calls = iter([new.wrap, lambda *_: kill()])
        new.wrap = lambda *values: next(calls)(*values)
    if stop != "begun":
        with pytest.raises(Killed):
            make().rewrap(new, kill)
    if stop == "replaced":
        end = FileKeyWrapper(tmp_path / "kek")
        end.end_rotation()
        (tmp_path / "kek.retired").write_bytes(b"left")
    for process in (running, make()):
        assert [process.unwrap(w, CONTEXT) for w in wrapped] == [b"data key"] * 2
    again = make()
    again.rewrap(again.master.begin_rotation(), again.master.end_rotation)
    assert [make().unwrap(w, CONTEXT) for w in wrapped] == [b"data key"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"kek", "hash-keys", "epochs"}


def test_hashes_of_an_installation_from_before_stay(tmp_path):
    """Its key-encryption key hashed; the hashes must outlive the key."""
    (tmp_path / "kek").write_bytes(b"k" * 32)
    before = FileKeyWrapper(tmp_path / "kek").keyed_hash("subject index", b"")
    upgraded = FileKeyWrapper(tmp_path / "kek")
    upgraded.create()
    assert upgraded.keyed_hash("subject index", b"") == before
    with pytest.raises(FileNotFoundError):
        FileKeyWrapper(tmp_path / "elsewhere").keyed_hash("another", b"")


def test_a_process_with_a_replaced_key_begins_no_epoch(make, tmp_path):
    """It would wrap what nothing opens: a host that kept the old file, or a file that was overwritten under it."""
    running = make()
    running.wrap(b"k", CONTEXT)
    old = (tmp_path / "kek").read_bytes()
    make().rewrap(running.master.begin_rotation(), running.master.end_rotation)
    (tmp_path / "elsewhere").mkdir()
    for content in (old, b"x" * 32):
        (tmp_path / "elsewhere" / "kek").write_bytes(content)
        stale = EpochKeys(FileKeyWrapper(tmp_path / "elsewhere" / "kek"), tmp_path / "epochs", 60, lambda _: None)
        with pytest.raises(InvalidTag):
            stale.wrap(b"k", CONTEXT)


def test_an_epoch_that_is_being_begun_is_not_taken_for_unnamed(make, tmp_path):
    """Its file is there and its row is not: whoever looks for unnamed keys waits, however long that takes."""
    other, outcomes = make(), []

    def look(epoch) -> None:
        outcomes.append((other.exists(epoch), other.destroy_unnamed(lambda _: set(), older_than=-1)))

    beginning = EpochKeys(FileKeyWrapper(tmp_path / "kek"), tmp_path / "epochs", 60, look)
    wrapped = beginning.wrap(b"k", CONTEXT)
    assert outcomes == [(True, 0)]
    assert list((tmp_path / "epochs").glob("*.unnamed")) == []
    named = {wrapping_epoch(wrapped)}
    for existing, destroyed in ((named, 0), (set(), 0), (named, 0), (set(), 0), (set(), 1)):
        assert other.destroy_unnamed(lambda _, existing=existing: existing, older_than=-1) == destroyed
    with pytest.raises(NotFound):
        make().unwrap(wrapped, CONTEXT)


def test_a_rotation_leaves_no_copy_of_a_key_that_is_destroyed(make, tmp_path):
    """A crash of a rotation may leave a half-written file beside the key."""
    keys = make()
    epoch = wrapping_epoch(keys.wrap(b"k", CONTEXT))
    (tmp_path / "epochs" / f".{epoch}.key").write_bytes(b"left")
    keys.destroy(epoch)
    assert not list((tmp_path / "epochs").glob(f"*{epoch}*"))
    assert not (tmp_path / "epochs" / f".{epoch}.key").exists()
