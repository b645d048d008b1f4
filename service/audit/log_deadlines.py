"""What the entries of a log say of the deadlines of its requests."""

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from service.audit.canonical import NotCanonical, loads
from service.audit.log_entry import LogEntry, text_in


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The deadlines of the accepted requests, as the entries of the log set them.

    Attributes:
        promised: ref -> the last promised day.
        open_until: ref -> the promised day while the request is open, "" once it has ended.
        members: job -> the refs of its requests.
    """

    promised: dict[str, str]
    open_until: dict[str, str]
    members: dict[str, list[str]]

    def read(self, data: bytes) -> bool:
        """Apply the next entry of the log; false, and nothing is applied, if it cannot be read."""
        try:
            self._add(loads(data))
        except (NotCanonical, KeyError, TypeError, AttributeError, ValueError):
            return False
        return True

    def overdue(self, today: dt.date) -> list[str]:
        """The refs of requests that are past their deadline and have not ended, sorted."""
        return sorted(ref for ref, day in self.open_until.items() if day and dt.date.fromisoformat(day) < today)

    def _add(self, entry: LogEntry) -> None:
        """Apply an entry. Each kind reads all that it needs before it changes anything.

        Raises:
            KeyError: The entry lacks a member, or names a request that the log does not have.
            TypeError: A member has another type.
            AttributeError: The entry is not an object.
            ValueError: A day is not a day.
        """
        match entry["kind"]:
            case "request.accepted":
                ref, due = text_in(entry["ref"]), _day(entry["due"])
                self.promised[ref] = self.open_until[ref] = due
            case "request.extended":
                ref, due, until = entry["ref"], _day(entry["due"]), self.open_until[entry["ref"]]
                self.promised[ref], self.open_until[ref] = due, until and due
            case "request.retried":
                self.open_until[entry["ref"]] = self.promised[entry["ref"]]
            case "version.withdrawn" | "version.rechecked":
                self._reopen(entry.get("reopened", ()), entry.get("due"))
            case "requests.reopened":  # those that the entry before has no room for
                self._reopen(entry["refs"], entry.get("due"))
            case "request.cancelled" | "request.nothing_found" | "request.closed":
                self.open_until[text_in(entry["ref"])] = ""
            case "requests.rejected":
                self._reject(entry.get("job"), {text_in(ref) for ref in entry["refs"]})
            case kind if text_in(kind).startswith("job."):
                self._add_of_job(entry)

    def _add_of_job(self, entry: LogEntry) -> None:
        """Apply an entry about a job. It raises what `_add` raises."""
        match entry["kind"]:
            case "job.batched":
                self.members[text_in(entry["job"])] = [text_in(ref) for ref in entry["refs"]]
            case "job.joined":  # its `job.batched` may be before the entries that are read
                joining = [text_in(ref) for ref in entry["refs"]]
                self.members.setdefault(text_in(entry["job"]), []).extend(joining)
            case "job.quarantined":  # the job's certificate, if it has one, was never published
                refs = self.members.get(entry["job"], ())
                self.open_until.update({ref: self.promised[ref] for ref in refs if ref in self.promised})
            case "job.certified":
                failed = self._due(entry.get("failed", ()))
                self.open_until.update(dict.fromkeys(self.members.get(entry["job"], ()), ""))
                self.open_until.update(failed)
            case "job.split":
                job, due = text_in(entry["job"]), self._due(entry["reopened"])
                self._leave(job, due)
                self.open_until.update(due)

    def _leave(self, job: str | None, refs: Collection[str]) -> None:
        """Requests are no longer members of their job: its end is not theirs."""
        if job in self.members:
            self.members[job] = [ref for ref in self.members[job] if ref not in refs]

    def _reject(self, job: str | None, refs: set[str]) -> None:
        """Requests have ended, also if their job is given up later."""
        self._leave(job, refs)
        self.open_until.update(dict.fromkeys(refs, ""))

    def _reopen(self, refs: Iterable[str], due: str | None) -> None:
        """Requests are open again until the promised day, or until a new one."""
        days = self._due(refs)
        if due is not None:
            days = dict.fromkeys(days, _day(due))
            self.promised.update(days)
        self.open_until.update(days)

    def _due(self, refs: Iterable[str]) -> dict[str, str]:
        """The promised day of each of these requests."""
        return {ref: self.promised[ref] for ref in refs}


def _day(value: object) -> str:
    """The value, which is a day.

    Raises:
        TypeError: It is not a string.
        ValueError: It is another string.
    """
    return dt.date.fromisoformat(text_in(value)).isoformat()
