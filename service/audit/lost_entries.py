"""What entries of the log say that a database has lost, by a failover or a restoration."""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from service.audit.canonical import NotCanonical, loads
from service.audit.log_deadlines import Deadlines
from service.audit.log_entry import text_in


def still_open(entries: Sequence[bytes]) -> list[str]:
    """The refs of the requests that these entries accept and do not end; a version that was not published ends none.

    They may name requests that earlier entries accept: these have ended, as far as is asked here.
    """
    deadlines, published = Deadlines(defaultdict(str), defaultdict(str), {}), set[str]()
    for entry in entries:
        kind, job = _kind_and_job(entry)
        if kind == "version.published":
            published.add(job)
    for entry in entries:
        kind, job = _kind_and_job(entry)
        if kind != "job.certified" or job in published or b'"overall":"FAIL"' in entry:
            deadlines.read(entry)
    return sorted(ref for ref, day in deadlines.open_until.items() if day)


def joined_jobs(entries: Sequence[bytes]) -> set[str]:
    """The jobs that requests joined, by these entries, and that have published nothing."""
    read = [_kind_and_job(entry) for entry in entries]
    published = {job for kind, job in read if kind == "version.published"}
    return {job for kind, job in read if kind == "job.joined"} - published


@dataclass(frozen=True, slots=True)
class CameBack:
    """What a recheck found, by its log entry.

    Attributes:
        refs: The requests that are open again; those of a long list may stand in the entries that follow.
        number: The version that remembers them.
        due: Their new deadline.
    """

    refs: list[str]
    number: int
    due: dt.datetime


def came_back(entries: Sequence[bytes]) -> list[CameBack]:
    """What the rechecks of these entries found. An entry that cannot be read says nothing."""
    findings: list[CameBack] = []
    for entry in entries:
        try:
            members = loads(entry)
            if members["kind"] == "version.rechecked":
                due = dt.datetime.fromisoformat(members["due"]).replace(tzinfo=dt.UTC)
                findings.append(CameBack(list(map(text_in, members["reopened"])), int(members["number"]), due))
            elif members["kind"] == "requests.reopened" and "due" in members and findings:
                findings[-1].refs.extend(map(text_in, members["refs"]))
        except (NotCanonical, KeyError, AttributeError, TypeError, ValueError):
            continue
    return findings


def _kind_and_job(entry: bytes) -> tuple[str, str]:
    """The kind of an entry and its job; empty if it has none or cannot be read."""
    try:
        members = loads(entry)
        return str(members["kind"]), str(members.get("job", ""))
    except (NotCanonical, KeyError, AttributeError, TypeError):
        return "", ""
