"""After a purge no key opens the purged texts, wherever PostgreSQL still keeps them; live requests stay readable."""

import os
from uuid import UUID

import pytest
from sqlalchemy import select, update

from service import rewrap
from service.bootstrap import build
from service.db import key_epochs, requests
from service.db.tables import DeletionRequest, KeyEpoch
from service.domain.errors import Conflict, NotFound
from service.privacy import epochs
from service.privacy.epochs import wrapping_epoch
from service.privacy.records import open_records
from service.steps.operator.rotate import rotate_master_key
from service.steps.upkeep.purge import purge_due, purge_request, purge_restored
from service.steps.upkeep.shred import rewrap_restored, shred_purged
from tests.service.conftest import REQUESTS, submit
from tests.service.dumps import backup, restore


class Killed(BaseException):
    """The process ends here."""


def kill(*_, **__):
    """Stand in for a step that is never reached."""
    raise Killed


def stored(services, request: dict) -> DeletionRequest:
    """The row of a request, with its records."""
    with services.db.reading() as session:
        row = requests.by_id(session, UUID(request["id"]))
        assert row.records is not None
        return row


def texts(services, request: dict) -> list[bytes]:
    """The texts of a request, read by a process that has just started."""
    fresh = build(services.settings)
    try:
        return [text for _, text in open_records(fresh.wrapper, stored(services, request))]
    finally:
        fresh.close()


def wrapped_key(services, request: dict) -> tuple[bytes, bytes]:
    """The wrapped data key as a dump of the database has it, and what it is bound to."""
    return stored(services, request).wrapped_key, request["id"].encode()


@pytest.fixture
def purged_and_live(api, services, model):
    """A purged request, what a dump from before the purge has of it, and a live request of the same epoch."""
    purged, live = submit(api, records=[{"text": "gone"}]), submit(api, records=[{"text": "still here"}])
    dumped = wrapped_key(services, purged)
    assert stored(services, purged).key_epoch == stored(services, live).key_epoch
    api.delete(f"{REQUESTS}/{purged['id']}")
    services.settings.custody_days = 0
    assert purge_due(services) == 1
    return purged, dumped, live


def test_a_dump_and_todays_keys_open_nothing_that_was_purged(api, services, purged_and_live):
    """The adversary has the dump's wrapped key and every key file. A live request of the same epoch stays readable."""
    _, dumped, live = purged_and_live
    assert services.wrapper.unwrap(*dumped)  # a deleted row alone hides nothing
    assert shred_purged(services) == 1
    fresh = build(services.settings)
    with pytest.raises(NotFound):
        fresh.wrapper.unwrap(*dumped)
    fresh.close()
    assert texts(services, live) == [b"still here"]
    assert shred_purged(services) == 0
    assert submit(api)["status"] == "pending"  # the process that wrapped under the destroyed key begins a new epoch


@pytest.mark.parametrize("point", ["note_moved", "doom", "destroy"])
def test_a_kill_anywhere_loses_nothing_and_the_next_call_ends_it(services, purged_and_live, monkeypatch, point):
    """Before the move is stored, before the epoch is deleted, and before its key is destroyed."""
    _, dumped, live = purged_and_live
    with monkeypatch.context() as patch:
        patch.setattr(services.wrapper, point, kill)
        with pytest.raises(Killed):
            shred_purged(services)
    assert texts(services, live) == [b"still here"]
    shred_purged(services)
    fresh = build(services.settings)
    with pytest.raises(NotFound):
        fresh.wrapper.unwrap(*dumped)
    fresh.close()
    assert texts(services, live) == [b"still here"]
    assert services.wrapper.doomed() == []


def test_notes_of_a_killed_move_do_not_outlive_the_requests(api, services, purged_and_live, monkeypatch):
    """The first target has data keys in its notes that the database never got; once the live request is purged, too,
    nothing opens what an old dump has of it."""
    _, _, live = purged_and_live
    dumped = wrapped_key(services, live)
    context = live["id"].encode()
    with monkeypatch.context() as patch:
        patch.setattr(key_epochs, "store_rewrapped", kill)
        with pytest.raises(Killed):
            shred_purged(services)
    noted = services.wrapper.moved()[UUID(live["id"])]
    shred_purged(services)
    api.delete(f"{REQUESTS}/{live['id']}")
    purge_due(services)
    shred_purged(services)
    fresh = build(services.settings)
    for wrapped in (noted, dumped[0], *fresh.wrapper.moved().values()):
        with pytest.raises(NotFound):
            fresh.wrapper.unwrap(wrapped, context)
    fresh.close()


def test_a_purge_moves_no_more_keys_than_an_epoch_holds(api, services, purged_and_live, monkeypatch):
    """So it costs the same however many requests live. Here an epoch holds two data keys, also one that is moved to."""
    for module in (epochs, rewrap):
        monkeypatch.setattr(module, "MAX_DATA_KEYS", 2)
    monkeypatch.setattr(rewrap, "CHUNK", 1)
    _, _, live = purged_and_live
    others = [submit(api, records=[{"text": f"live {i}"}]) for i in range(4)]
    shred_purged(services)
    held = [stored(services, request).key_epoch for request in (live, *others)]
    assert max(map(held.count, held)) == 2
    api.delete(f"{REQUESTS}/{live['id']}")
    purge_due(services)
    shred_purged(services)
    after = [stored(services, request).key_epoch for request in others]
    assert sum(before != now for before, now in zip(held[1:], after, strict=True)) <= 1
    assert [texts(services, request) for request in others] == [[f"live {i}".encode()] for i in range(4)]


def test_two_processes_do_not_move_keys_at_once(services, purged_and_live):
    """The second one leaves it to the first."""
    other = build(services.settings)
    with other.wrapper.alone() as alone:
        assert alone
        assert shred_purged(services) == 0
    other.close()
    assert shred_purged(services) == 1


def test_a_request_that_is_open_again_is_not_purged(api, services, model):
    """It was due to be purged a moment ago; the texts stay, and the ledger does not have it."""
    request = submit(api)
    with pytest.raises(Conflict):
        purge_request(services, UUID(request["id"]), UUID(int=0))
    assert services.storage.purged() == []
    assert stored(services, request).wrapped_key is not None


def test_a_request_that_is_accepted_meanwhile_keeps_its_key(api, services, purged_and_live, monkeypatch):
    """It names the epoch after the others were moved: the database refuses to delete the epoch, and the key stays."""
    late = []
    doom = services.wrapper.doom

    def accept_then_doom(epoch):
        late.append(submit(api, records=[{"text": "late"}]))
        doom(epoch)

    with monkeypatch.context() as patch:
        patch.setattr(services.wrapper, "doom", accept_then_doom)
        assert shred_purged(services) == 0
    assert texts(services, late[0]) == [b"late"]
    assert shred_purged(services) == 1
    assert texts(services, late[0]) == [b"late"]


def test_a_process_that_was_frozen_between_sealing_and_storing_loses_nothing(api, services, model):
    """Its epoch is gone by then: the request is sealed again under a new one, or not accepted at all."""
    first = submit(api)
    epoch = stored(services, first).key_epoch
    api.delete(f"{REQUESTS}/{first['id']}")
    services.settings.custody_days = 0
    purge_due(services)
    other = build(services.settings)
    assert shred_purged(other) == 1  # another process; the first does not know
    other.close()
    assert wrapping_epoch(services.wrapper.wrap(b"data key", b"context")) == epoch
    second = submit(api, records=[{"text": "kept"}])
    assert stored(services, second).key_epoch != epoch
    assert texts(services, second) == [b"kept"]


def test_a_restored_database_gets_the_keys_that_moved_and_not_the_purged_ones(services, purged_and_live):
    """The backup has both data keys under the destroyed key; the folder of keys knows where the live one went."""
    live = purged_and_live[2]
    before = stored(services, live)
    backup = (before.wrapped_key, before.key_epoch)
    shred_purged(services)
    with services.db.transaction() as session:  # as the backup had it
        session.execute(update(DeletionRequest).values(key_epoch=None))
        session.execute(KeyEpoch.__table__.delete())
        key_epochs.insert(session, backup[1])
        row = DeletionRequest.id == UUID(live["id"])
        session.execute(update(DeletionRequest).where(row).values(wrapped_key=backup[0], key_epoch=backup[1]))
    with pytest.raises(NotFound):
        texts(services, live)
    assert rewrap_restored(services) == 1
    assert purge_restored(services) == []
    assert texts(services, live) == [b"still here"]
    assert rewrap_restored(services) == 0


def opens(services, dumped: tuple[bytes, bytes]) -> bool:
    """Whether a process that has just started opens a wrapped data key."""
    fresh = build(services.settings)
    try:
        return bool(fresh.wrapper.unwrap(*dumped))
    except NotFound:
        return False
    finally:
        fresh.close()


def begin_epoch(services) -> None:
    """As after `epoch_seconds`."""
    services.wrapper.end_present()


def test_a_purged_text_stays_gone_in_a_database_from_before_its_epoch(api, services, model):
    """The restored database knows neither the request nor the epoch. The ledger does, and so does the collector."""
    earlier = submit(api, records=[{"text": "before the dump"}])
    dump = backup(services)
    begin_epoch(services)
    purged = submit(api, records=[{"text": "gone"}])
    dumped = wrapped_key(services, purged)
    api.delete(f"{REQUESTS}/{purged['id']}")
    api.post(f"{REQUESTS}/{purged['id']}/purge")
    restore(services, dump)
    assert opens(services, dumped)
    assert shred_purged(services) == 1
    assert not opens(services, dumped)
    assert texts(services, earlier) == [b"before the dump"]
    assert texts(services, submit(api, records=[{"text": "after"}])) == [b"after"]


def test_live_requests_of_a_purged_epoch_move_in_a_restored_database(api, services, model):
    """It has the epoch, and does not know of the purge: its row of the purged request was written later."""
    live = submit(api, records=[{"text": "still here"}])
    dump = backup(services)
    purged = submit(api, records=[{"text": "gone"}])
    dumped = wrapped_key(services, purged)
    assert stored(services, purged).key_epoch == stored(services, live).key_epoch
    api.delete(f"{REQUESTS}/{purged['id']}")
    api.post(f"{REQUESTS}/{purged['id']}/purge")
    restore(services, dump)
    assert shred_purged(services) == 1
    assert not opens(services, dumped)
    assert texts(services, live) == [b"still here"]


def test_keys_that_moved_outlive_the_shredding_of_a_restored_database(api, services, model):
    """The restored database lacks the epoch that a live request was moved to, of which another request was purged."""
    live, gone = submit(api, records=[{"text": "still here"}]), submit(api)
    dump = backup(services)
    for request in (gone, None):
        late = request or submit(api)
        api.delete(f"{REQUESTS}/{late['id']}")
        api.post(f"{REQUESTS}/{late['id']}/purge")
        shred_purged(services)
    services.storage.add_purged(UUID(gone["id"]), stored(services, live).key_epoch)
    restore(services, dump)
    shred_purged(services)
    assert texts(services, live) == [b"still here"]


def age_marks(services) -> None:
    """As if keys had been found unnamed long ago."""
    for path in (services.settings.keys_dir / "epochs").glob("*.unnamed"):
        os.utime(path, (0, 0))


def test_a_key_that_nobody_names_goes_after_a_while_and_not_if_another_dump_names_it(api, services, model):
    """The ledger of an older release does not have the epoch, or the request was never purged."""
    empty = backup(services)
    request = submit(api, records=[{"text": "lost with the dump"}])
    dumped, full = wrapped_key(services, request), backup(services)
    restore(services, empty)
    assert shred_purged(services) == 0
    assert opens(services, dumped)  # the operator may have taken the wrong dump
    restore(services, full)
    age_marks(services)
    assert shred_purged(services) == 0
    assert texts(services, request) == [b"lost with the dump"]
    restore(services, empty)
    for destroyed in (0, 1):  # the first call finds it
        assert shred_purged(services) == destroyed
        age_marks(services)
    assert not opens(services, dumped)
    assert texts(services, submit(api, records=[{"text": "after"}])) == [b"after"]


def test_a_new_master_key_shreds_what_the_old_one_alone_wrapped(api, services, model):
    """A request from before there were epochs moves into one; the old key-encryption key opens nothing any more."""
    request = submit(api, records=[{"text": "old"}])
    row = stored(services, request)
    context = request["id"].encode()
    master = services.wrapper.master
    legacy = master.wrap(services.wrapper.unwrap(row.wrapped_key, context), context)
    with services.db.transaction() as session:
        session.execute(update(DeletionRequest).values(wrapped_key=legacy, key_epoch=None))
    assert texts(services, request) == [b"old"]
    assert rotate_master_key(services) >= 1
    assert texts(services, request) == [b"old"]
    with services.db.reading() as session:
        assert session.scalar(select(DeletionRequest.key_epoch)) is not None
    fresh = build(services.settings)
    with pytest.raises(Exception, match=r"^$"):
        fresh.wrapper.unwrap(legacy, context)
    fresh.close()


def test_an_operator_purges_a_request_that_has_ended(api, services, model):
    """Before its time, and only once it has ended."""
    request = submit(api)
    open_ = api.post(f"{REQUESTS}/{request['id']}/purge")
    assert (open_.status_code, "has ended" in open_.json()["detail"]) == (409, True)
    api.delete(f"{REQUESTS}/{request['id']}")
    dumped = wrapped_key(services, request)
    assert api.post(f"{REQUESTS}/{request['id']}/purge").status_code == 200
    assert stored(services, request).wrapped_key is None
    assert shred_purged(services) == 1
    fresh = build(services.settings)
    with pytest.raises(NotFound):
        fresh.wrapper.unwrap(*dumped)
    fresh.close()
    assert api.post(f"{REQUESTS}/{UUID(int=0)}/purge").status_code == 404
