"""What is wrong outside the program becomes one line; what may be a bug does not."""

import errno
import os

import psycopg
import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from service.config import Settings
from service.domain.errors import CannotStart
from service.explain import explain


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CannotStart("as it is"), "as it is"),
        (OSError(errno.ENOSPC, "", "/d/x"), "/d/x: No space left on device (ENOSPC). Free some space."),
        (OSError(errno.ENOSPC, ""), "No space left on device (ENOSPC). Free some space."),
        (
            OSError(errno.EROFS, "", "/d"),
            "/d: Read-only file system (EROFS). Mount it writable, or name another place.",
        ),
        (OSError(errno.EIO, "", "/d"), "/d: Input/output error (EIO)"),
        (ModuleNotFoundError("", name="torch"), "this needs the extra engine: pip install 'unlearnd[engine]'"),
        (ModuleNotFoundError("", name="boto3.session"), "this needs the extra kms: pip install 'unlearnd[kms]'"),
    ],
    ids=repr,
)
def test_a_cause_outside_has_a_line(error, expected):
    """With the remedy, where there is one."""
    assert explain(error) == expected


@pytest.mark.parametrize(
    "error", [ValueError("a text"), KeyError("k"), OSError("a text"), ModuleNotFoundError("", name="of_ours")], ids=repr
)
def test_what_may_be_a_bug_has_none(error):
    """Its traceback is needed."""
    assert explain(error) is None


@pytest.mark.parametrize(
    ("driver", "wrapper", "expected"),
    [
        (psycopg.errors.DiskFull("could not extend file: No space left on device"), OperationalError, "53100"),
        (psycopg.errors.LockNotAvailable("canceling statement due to lock timeout"), OperationalError, "lock timeout"),
        (psycopg.errors.UndefinedTable('relation "models" does not exist'), ProgrammingError, "Run unlearnd migrate."),
        (psycopg.errors.InsufficientPrivilege("permission denied"), ProgrammingError, "permission denied"),
        (psycopg.OperationalError("connection failed: to server: Connection refused"), OperationalError, "refused"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_database_says_is_passed_on(driver, wrapper, expected):
    """The driver's own error, and SQLAlchemy's around it; the statement and its parameters are left out."""
    for error in (driver, wrapper("SELECT secret", {"p": "secret"}, driver)):
        line = explain(error)
        assert expected in line
        assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://service:p%40ss%2Fword@host:5433/unlearnd",
        "postgres://host/unlearnd?sslmode=require",
        "postgresql://unlearnd@/postgres?host=/home/a@b/run/sockets",
        "",
    ],
)
def test_a_url_that_works_is_taken(url):
    """Percent-encoded passwords, sockets in any folder, and none at all."""
    assert Settings(database_url=url).database_url == url
    assert Settings(broker_url="redis+socket:///home/a@b/valkey.sock")


@pytest.mark.parametrize("name", ["sweep_seconds", "collect_seconds", "lease_seconds", "database_pool"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_number_that_could_not_work_is_refused(name, value):
    """A sweep every 0 seconds would never rest."""
    with pytest.raises(ValueError, match=name) as refused:
        Settings(**{name: value})
    assert f"UNLEARND_{name.upper()} is not valid" in explain(refused.value)


def test_the_host_of_a_database_is_named():
    """It comes from the connection, not from the URL, which holds the password."""
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect("postgresql://service:sesame@127.0.0.1:9/unlearnd")
    line = explain(refused.value)
    assert "at 127.0.0.1:9 does not answer: " in line
    assert os.strerror(errno.ECONNREFUSED) in line
    assert "sesame" not in line
