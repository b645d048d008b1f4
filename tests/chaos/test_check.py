"""The checker is checked: every invariant of `tests/chaos/check.py` can be seen to fail."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import support
from tests.chaos.check import Check
from tests.chaos.test_chaos import register, started

Plant = Callable[[Check, str], None]  # on what the checker has read, or in storage; the request's id


def changed(table: str, **values: object) -> Plant:
    """Columns of the newest row of a table."""
    return lambda check, _: check.tables[table][-1].update(values)


def dropped(table: str) -> Plant:
    """The newest row of a table is gone."""
    return lambda check, _: check.tables[table].pop()


def said(kind: str, times: int) -> Plant:
    """The last entry of a kind stands so often in the log."""

    def plant(check: Check, _: str) -> None:
        (*_others, last) = [e for e in check.entries if e["kind"] == kind]
        check.entries = [e for e in check.entries if e is not last] + [last] * times

    return plant


def file_in(place: str) -> Plant:
    """A folder of storage that nobody should have left."""
    return lambda check, _: (check.storage / place).mkdir()


def damage(check: Check, _: str) -> None:
    """A published file is another one."""
    digest = check.tables["versions"][-1]["digest"]
    (check.storage / "versions" / digest / "model" / "config.json").write_text("{}")


PLANTED: dict[str, tuple[Plant, str]] = {
    "an accepted request is lost": (lambda check, request: check.requests.pop(request), "not in the database"),
    "a request has no end": (changed("deletion_requests", status="running"), "is still running"),
    "a request is completed and failed": (changed("deletion_requests", verdict="FAIL"), "is completed with FAIL"),
    "a job goes on": (changed("jobs", stage="verify"), "is still at verify"),
    "a lease is left": (changed("jobs", owner="somebody"), "is owned by somebody"),
    "a version is lost": (dropped("versions"), "has 0 versions"),
    "latest is not the newest": (changed("models", latest=0), "which is not its newest version"),
    "a version has another parent": (changed("versions", parent_id=None), "does not follow the version before it"),
    "a folder has no row": (file_in("versions/" + "0" * 64), "has no row"),
    "a working folder is left": (file_in("work/left"), "work/left is left"),
    "a published file is changed": (damage, "is not what its manifest says"),
    "the log is changed": (lambda check, _: check.log[-1].update(entry=b"{}"), "is not the hash of its entry"),
    "the log has a gap": (lambda check, _: check.log.pop(1), "the log has a gap"),
    "a request was accepted twice": (said("request.accepted", 2), "was accepted 2 times"),
    "a version was published twice": (said("version.published", 2), "2 entries version.published"),
    "a version is not in the log": (said("version.published", 0), "is not the one in the log"),
    "a certificate is another one": (changed("certificates", digest="0" * 64), "is not the last one in the log"),
    "a version has no certificate": (dropped("certificates"), "has no certificate"),
    "a callback waits": (changed("outbox", delivered_at=None), "is not delivered"),
    "a callback was made twice": (lambda check, _: check.tables["outbox"].append(check.tables["outbox"][-1]), "2 call"),
}


pytestmark = pytest.mark.slow  # they need a stack that has worked


@pytest.fixture(scope="module")
def well(base):
    """A stack that has made one version, and nothing has happened to it."""
    with started(base, mount=False) as running:
        register(running, "well")
        running.submit("well", support.KNOWN[0])
        assert running.ended() == []
        assert running.settled() == []
        yield running


@pytest.mark.parametrize("planted", PLANTED)
def test_the_checker_sees_what_is_planted(well, planted, tmp_path):
    """The invariants can fail: each fault is put into what the checker has read of a stack that is well."""
    secret = Path(well.running.endpoint["api_key_file"]).read_text()
    storage = shutil.copytree(well.data / "storage", tmp_path / "storage")
    check = Check(database=well.database, storage=storage, url=well.running.endpoint["url"], api_key=secret)
    assert check.problems(well.accepted) == []
    plant, sentence = PLANTED[planted]
    plant(check, next(iter(well.accepted)))
    assert sentence in "\n".join(check.problems(well.accepted))


def test_a_text_is_found_wherever_it_is_readable(well):
    """In a file as it is or as hex, and in a table."""
    stack = well
    word, file = "a word that nobody sent", stack.data / "storage" / "left.txt"
    assert stack.readable() == []
    stack.words.append(word)
    try:
        for content in (word, word.encode().hex()):
            file.write_text(content)
            assert stack.readable() == [f"{file} holds a text"]
        file.unlink()
        with stack.connect() as connection:
            connection.execute("CREATE TABLE leaky AS SELECT %s::text AS reason", [word])
        assert "table leaky holds a text" in stack.readable()[0]
    finally:
        stack.words.remove(word)
        file.unlink(missing_ok=True)
        with stack.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS leaky")
