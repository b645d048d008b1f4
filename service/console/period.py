"""The report on a period: what a regulator asks for."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from service.console.documents import Block, Document
from service.console.words import LAWS, reason, written

OUTCOMES = {
    "completed": "A new version of the model was published",
    "nothing_found": "Nothing about the person was found",
    "not_memorised": "The model had not memorised the texts, by its tests, and was not changed",
    "rejected": "Rejected",
    "cancelled": "Cancelled by who made it",
    "failed": "Failed, and still owed",
    "resolved": "Failed, and then dealt with in another way",
    "open": "Not ended yet",
}
DOWNLOADS = "Users who downloaded a version for the first time, and are to be told of later ones (GDPR, article 19)"
RECORDS = (
    "Each ended job has a signed record of its procedure and test results, which anybody can check offline. The record "
    "says what was tested; it does not say that nothing of the texts is left in a model."
)


def period_document(issuer: str, begins: date, ends: date, numbers: Mapping[str, Any]) -> Document:
    """The document; `ends` is the first day after the period."""
    statuses = numbers["by_status"]
    total = sum(statuses.values())
    rest = total - numbers["in_time"] - numbers["late"] - numbers["overdue"]
    summary = (
        f"From {written(begins)} to {written(ends - timedelta(days=1))}, {issuer} received {total} deletion requests "
        f"for language models. Dealt with in time: {numbers['in_time']}; too late: {numbers['late']}. Still owed and "
        f"past their deadline: {numbers['overdue']}; still owed and within their time: {rest}."
    )
    deadlines = [
        ("Received", str(total)),
        ("Dealt with in time", f"{numbers['in_time']}; cancelled and rejected ones are among them"),
        ("Dealt with too late", str(numbers["late"])),
        ("Past the deadline, still owed", str(numbers["overdue"])),
        ("Within their time, still owed", str(rest)),
        ("With an extended deadline", f"{numbers['extended']}; they count by the new one"),
        ("Median from receipt to end", _days(numbers["median_days"])),
        ("As of", written(datetime.now(UTC).date())),
    ]
    outcomes = {OUTCOMES.get(name, name): count for name, count in statuses.items()}
    laws = {LAWS[name]: count for name, count in numbers["by_law"].items()}
    failures = {f"{reason(name).partition('. ')[0].rstrip('.')}.": n for name, n in numbers["failures"].items()}
    blocks = [
        Block("lead", summary),
        Block("heading", "Deadlines"),
        Block("facts", rows=deadlines),
        Block("heading", "How they ended"),
        _counts("Requests by outcome", "outcome", outcomes),
        Block("heading", "Laws"),
        _counts("Requests by law", "law", laws),
        Block("heading", "Failures"),
        Block("text", "A failed request stays owed until it is retried with success, or resolved in another way."),
        _counts("Failed requests by reason", "reason", failures),
        Block("heading", "Methods and versions"),
        Block("text", f"Versions of models published in the period: {numbers['versions']}."),
        _counts("Versions by method", "method", numbers["methods"]),
        Block("text", f"{DOWNLOADS}: {numbers['downloads']}."),
        Block("text", RECORDS),
    ]
    return Document("Report on deletion requests", blocks)


def _counts(caption: str, name: str, counts: Mapping[str, int]) -> Block:
    """A table of counts."""
    return Block("table", caption, [(what, str(count)) for what, count in counts.items()], (name, "number"))


def _days(days: float | None) -> str:
    return "none has ended" if days is None else f"{days:.1f} days"
