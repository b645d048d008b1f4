"""One line for a person about what is wrong outside the program, and what to do about it.

Settings, files, disks, the network and the database can all be wrong. Each ends a program with one line and the exit
code `CANNOT_START`, never with a traceback. No line holds the value of a setting, because it may be a secret.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

from service import extras
from service.domain.errors import CannotStart, StorageAway

CANNOT_START = 2  # the exit code: to start again changes nothing
REMEDIES = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space, or raise the quota.",
    errno.EROFS: "Mount it writable, or name another place.",
    errno.EACCES: "Give this user access to it, or name another place.",
    errno.EPERM: "Give this user access to it, or name another place.",
    errno.ENOENT: "Create it, or name another place.",
    errno.ENOTDIR: "A part of this path is a file: name another place.",
    errno.EISDIR: "It is a folder: name a file.",
    errno.EEXIST: "Remove it, or name another place.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}
STORAGE_AWAY = "See UNLEARND_STORAGE_URL, the credentials and endpoint in the environment, and the bucket's policy."
Value = TypeVar("Value")


def explain(error: BaseException) -> str | None:
    """The line for an error whose cause is outside the program; None if it may be a bug."""
    if isinstance(error, CannotStart):
        return str(error)
    if isinstance(error, StorageAway):
        return f"{error} {STORAGE_AWAY}"
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return describe_os_error(error)
    if isinstance(error, ImportError):
        return extras.explain_missing(error.name)
    return _settings_problem(error) or _database_problem(error)


def explained(run: Callable[[], Value]) -> Value:
    """Call `run` and return its value. What `explain` has a line for ends the process."""
    try:
        return run()
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"unlearnd: {line}\n")
        sys.exit(CANNOT_START)


def describe_os_error(error: OSError, what: str | None = None, remedies: Mapping[int, str] = REMEDIES) -> str:
    """What (default: the file), the system's words, the name of the errno, and the remedy."""
    number = error.errno or 0
    what = what or ("" if error.filename is None else str(error.filename))
    line = f"{what}{': ' if what else ''}{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    return f"{line}. {remedies[number]}" if number in remedies else line


def _settings_problem(error: BaseException) -> str | None:
    """The variables that are not valid. Neither the message nor the line has their values."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    if isinstance(error, SettingsError):
        field = re.search(r'field "(\w+)"', str(error))
        return f"UNLEARND_{field[1].upper()} is not valid: it must be JSON" if field else None
    if not isinstance(error, ValidationError) or error.title != "Settings":
        return None
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(
        f"UNLEARND_{str(p['loc'][0]).upper()} is not valid: {p['msg'].removeprefix('Value error, ')}" for p in problems
    )


def _database_problem(error: BaseException) -> str | None:
    """What PostgreSQL says, or that it does not answer. The URL's password is in no line."""
    if "psycopg" not in sys.modules:
        return None
    import psycopg
    from psycopg.errors import InsufficientPrivilege, UndefinedTable

    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps the driver's errors
    if isinstance(cause, UndefinedTable):
        return "The database has no tables of this release. Run unlearnd migrate."
    if not isinstance(cause, psycopg.OperationalError | InsufficientPrivilege):
        return None
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rpartition(": ")[2].strip()
    if cause.sqlstate:
        return f"The database refuses: {reason} ({cause.sqlstate})."
    place = f" at {cause.pgconn.host.decode()}:{cause.pgconn.port.decode()}" if cause.pgconn else ""
    return f"The database{place} does not answer: {reason}. Start it, or correct UNLEARND_DATABASE_URL."
