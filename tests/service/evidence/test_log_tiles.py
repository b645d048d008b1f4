"""The log's memory in tiles: it grows with the log, sees a changed database, takes over what older releases kept."""

import base64
import json
import random
import shutil

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.audit.checkpoint import Proof, read_checkpoint
from service.audit.merkle import leaf_hash, root
from service.audit.tiles import WIDTH, split_entries, split_hashes
from service.db import log_entries, log_home
from service.doctor import examine
from service.evidence import log_keeper
from service.evidence.log_keeper import LogForked
from service.evidence.log_memory import LogDamaged
from service.local import postgres

MANY = 3 * WIDTH + 5


def append(services, count: int) -> None:
    """Many entries in one transaction."""
    entry = 'convert_to(format(\'{"at":"x","kind":"test","n":%s}\', n), \'UTF8\')'
    with services.db.transaction() as session:
        session.execute(text(f"SELECT audit_append({entry}) FROM generate_series(1, {count}) n"))


def leaves(services) -> list[bytes]:
    """The hashes of all entries of the database."""
    with services.db.reading() as session:
        return [leaf_hash(entry) for entry in log_entries.entries(session, 0, 10_000)]


def change(services, index: int) -> None:
    """Rewrite an entry, as whoever has the database in his hands can."""
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        connection.execute("UPDATE audit_entries SET entry = '{}' WHERE index = %s", [index])


def test_a_log_is_signed_piece_by_piece(services, monkeypatch):
    """Each checkpoint covers all entries, whatever size the one before had; every entry is proved against the last."""
    monkeypatch.setattr(log_keeper, "AT_ONCE", 2 * WIDTH)
    for more in (1, WIDTH - 1, 1, MANY, 2 * WIDTH):
        append(services, more)
        signed = read_checkpoint(services.log.sign())
        assert (signed.size, signed.root) == (len(leaves(services)), root(leaves(services)))
    assert signed.size == 1 + WIDTH + MANY + 2 * WIDTH
    for index in (0, WIDTH, MANY, signed.size - 1):
        proof = Proof.loads(services.log.prove(index))
        assert proof.check([services.log.key.public_key()]).size == signed.size
        assert leaf_hash(proof.entry) == leaves(services)[index]


def test_the_tiles_are_served(api, services):
    """Every tile of the last checkpoint, in every width up to its own; nothing that was not signed."""
    append(services, MANY)
    note = services.log.sign()
    append(services, WIDTH)
    assert api.get("/v1/log/checkpoint").text == note
    size = read_checkpoint(note).size
    hashes, entries = [], []
    for number in range(-(-size // WIDTH)):
        width = min(WIDTH, size - number * WIDTH)
        name = f"{number:03}" if width == WIDTH else f"{number:03}.p/{width}"
        hashes += split_hashes(api.get(f"/v1/log/tile/0/{name}").content)
        entries += split_entries(api.get(f"/v1/log/tile/entries/{name}").content, width)
    assert hashes == [leaf_hash(entry) for entry in entries] == leaves(services)[:size]
    assert split_hashes(api.get("/v1/log/tile/0/001.p/7").content) == hashes[WIDTH : WIDTH + 7]
    assert split_entries(api.get("/v1/log/tile/entries/001.p/7").content, 7) == entries[WIDTH : WIDTH + 7]
    assert split_hashes(api.get("/v1/log/tile/1/000.p/3").content)[2] == root(hashes[2 * WIDTH : 3 * WIDTH])
    for path in (
        "0/003",
        "0/004",
        "1/000",
        "2/000",
        "0/003.p/200",
        "entries/3",
        "0/000.p/0",
        "x/000",
        "..%2fcheckpoint",
    ):
        assert api.get(f"/v1/log/tile/{path}").status_code == 404, path


def test_tiles_are_for_readers_and_auditors(api, services, new_key):
    """They hold entries, or hashes of entries that can be guessed."""
    append(services, 1)
    services.log.sign()
    for scope, status in (("submit", 403), ("download", 403), ("read", 200), ("audit", 200)):
        key = {"Authorization": f"Bearer {new_key(scope)}"}
        assert api.get("/v1/log/tile/0/000.p/1", headers=key).status_code == status


def test_a_change_far_back_is_seen_soon(services, monkeypatch):
    """Each look at the log compares the last tile and one by chance, and the whole log once entries are missing."""
    append(services, MANY)
    note = services.log.sign()
    change(services, WIDTH + 1)
    monkeypatch.setattr(random, "randrange", lambda count: count - 1)
    append(services, 1)
    assert services.log.sign() != note
    monkeypatch.setattr(random, "randrange", lambda _: 1)
    for look in (services.log.sign, services.log.missing_entries):
        with pytest.raises(LogForked, match="256 to 511"):
            look()
    proof = Proof.loads(Proof(*_proved(services, WIDTH + 1)).dumps())
    assert proof.entry != b"{}"  # what is proved is what was signed


def _proved(services, index: int) -> tuple:
    """The parts of a proof of an entry, made while nothing is compared."""
    services.log._check_beginning = lambda *_: None
    proof = Proof.loads(services.log.prove(index))
    proof.check([services.log.key.public_key()])
    return proof.entry, proof.index, proof.path, proof.note


@pytest.mark.parametrize("count", [3, MANY])
def test_the_memory_of_an_older_release_is_taken_over(services, count):
    """The same checkpoint, the same entries; a crash on the way is no matter."""
    append(services, count)
    note, folder = services.log.sign(), services.settings.storage_dir / "ledger" / "log"
    with services.db.reading() as session:
        entries = log_entries.entries(session, 0, count)
    old = "".join(base64.b64encode(entry).decode() + "\n" for entry in entries)
    signed = {"note": note, "size": count, "root": root(leaves(services)).hex(), "bytes": len(old)}
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "log.jsonl").write_text(old + "aGFsZiBhIGxp")
    (folder / "checkpoint.json").write_text(json.dumps(signed))
    (folder / "tile" / "0").mkdir(parents=True)  # a crash left it
    (folder / "tile" / "0" / "000").write_bytes(b"nonsense")
    assert services.log.checkpoint() == note
    append(services, 2)
    newer = read_checkpoint(services.log.sign())
    assert (newer.size, newer.root) == (count + 2, root(leaves(services)))
    assert services.log.tree().subtree(0, 2) == root(leaves(services)[:2])
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "lock", "tile"]


def test_a_copy_of_the_database_has_no_say_in_the_log(services, servers, api, model):
    """Two databases that go on with one log would show two pasts. An operator decides, by `reconcile`."""
    name = conninfo_to_dict(services.settings.database_url)["dbname"]
    services.db.close()
    with psycopg.connect(postgres.url(servers), autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
        server.execute(f"ALTER DATABASE {name} RENAME TO original")
        server.execute(f"CREATE DATABASE {name} TEMPLATE original")
        server.execute("DROP DATABASE original")
    with pytest.raises(DBAPIError, match="unlearnd reconcile") as caught:
        append(services, 1)
    assert log_home.is_refusal(caught.value)
    assert api.get("/readyz").json()["database"] == "moved"
    assert any("does not go on" in finding.problem for finding in examine(services))


@pytest.mark.parametrize(("process", "may"), [("api", False), ("compute", False), ("control", True)])
def test_who_may_settle_the_log(as_process, process, may):
    """Control workers and operators. Whoever computes or takes requests could hide what was lost."""
    with as_process(process).db.transaction() as session:
        if may:
            assert log_home.settle(session, [], log_entries.size(session)) == []
            return
        with pytest.raises(DBAPIError, match="permission denied"):
            log_home.settle(session, [], 0)


def test_two_processes_that_reconcile_bring_entries_back_once(services):
    """Both have seen what is missing before either has settled the log."""
    append(services, 5)
    services.log.sign()
    with psycopg.connect(services.settings.owner_database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM audit_entries WHERE index >= 2")
        connection.execute("ALTER TABLE audit_entries ENABLE TRIGGER ALL")
    seen = [services.log.missing_entries() for _ in range(2)]
    lost = []
    for size, missing in seen:
        with services.db.transaction() as session:
            lost.append(log_home.settle(session, missing, size))
    assert lost == [[], None]
    assert services.log.missing_entries() == (5, [])


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(bytes(32) + path.read_bytes()[32:]),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ],
    ids=["changed", "gone", "cut"],
)
@pytest.mark.parametrize("level", [0, 1])
def test_no_checkpoint_comes_of_damaged_tiles(services, harm, level, monkeypatch):
    """It would contradict the one before. The doctor says what to restore, and not to begin a new log."""
    monkeypatch.setattr(random, "randrange", lambda _: 0)
    append(services, MANY)
    note = services.log.sign()
    tile = services.settings.storage_dir / "ledger" / "log" / "tile" / str(level) / "000"
    harm(tile if level == 0 else tile.with_name("000.p") / "3")
    append(services, 1)
    with pytest.raises(LogDamaged):
        services.log.sign()
    assert services.log.checkpoint() == note
    if level == 0:
        assert any("is damaged" in finding.problem for finding in examine(services))


def test_what_an_older_worker_leaves_behind_is_not_taken_over(services):
    """It saw no memory, and signed the log from its beginning: the newer checkpoint stays."""
    append(services, 3)
    note, folder = services.log.sign(), services.settings.storage_dir / "ledger" / "log"
    (folder / "checkpoint.json").write_text(
        json.dumps({"note": note.replace("3", "2", 1), "size": 2, "root": "", "bytes": 9})
    )
    assert services.log.sign() == note
    assert not (folder / "checkpoint.json").exists()


def test_the_doctor_compares_every_entry(services):
    """Also those that no look at the log has met."""
    append(services, MANY)
    services.log.sign()
    change(services, 3)
    with pytest.raises(LogForked):
        services.log.missing_entries(compare_all=True)
