"""Deletion requests: submit them, follow them, decide about those that wait for somebody."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.progress import Progress

from service.cli.client import COLUMNS, connect, read_json
from service.cli.console import AsJson, app, say, screen, show, table
from service.domain.errors import ClientError

if TYPE_CHECKING:
    from service.client import Client
    from service.operations import Identity, Subject

requests = typer.Typer(help="Submit deletion requests and follow them.", no_args_is_help=True)
app.add_typer(requests, name="requests")

Id = Annotated[str, typer.Argument(metavar="ID")]
Model = Annotated[str, typer.Option()]
Emails = Annotated[list[str] | None, typer.Option("--email", help="of the person; several times for several")]
Phones = Annotated[list[str] | None, typer.Option("--phone", help="with +country, or as the corpora's region has it")]
Identities = Annotated[
    list[str] | None,
    typer.Option("--identity", help="TYPE:FORMAT:VALUE, as controller_customer_id:raw:4711 or email:sha256:HEX"),
]
Names = Annotated[list[str] | None, typer.Option("--name", help="what a name alone finds waits for approval")]


def _subject(
    emails: list[str] | None, phones: list[str] | None, identities: list[str] | None, names: list[str] | None
) -> "Subject | None":
    """The person that the options name, if they do."""
    found: list[Identity] = [{"type": "email", "value": value} for value in emails or ()]
    found += [{"type": "phone", "value": value} for value in phones or ()]
    for given in identities or ():
        kind, form, value = ([*given.split(":", 2), "", ""])[:3]
        if not value:
            raise ClientError("--identity: give TYPE:FORMAT:VALUE")
        found.append({"type": kind, "format": form, "value": value})
    subject: Subject = {"identities": found, "names": names or []}
    return subject if found or names else None


@requests.command("submit")
def requests_submit(
    model: Model,
    text: Annotated[list[str] | None, typer.Option(help="a record; may be given several times")] = None,
    file: Annotated[Path | None, typer.Option(help="JSONL or CSV with a `text` column, or a record a line")] = None,
    email: Emails = None,
    phone: Phones = None,
    identity: Identities = None,
    name: Names = None,
    regulation: str = "gdpr",
    callback_url: str | None = None,
    resubmits: Annotated[Path | None, typer.Option(help="receipt of an earlier request with the same texts")] = None,
    receipt: Annotated[Path | None, typer.Option(help="where the receipt goes; default: receipt-ID.json")] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a deletion request; its receipt, which is given once, is written to a file."""
    from service.steps.register import UnreadableCorpus, read_texts

    texts = list(text or [])
    if file:
        try:
            texts += read_texts(file)
        except (UnreadableCorpus, UnicodeDecodeError) as error:
            raise ClientError(f"--file: {error}") from error
        except OSError as error:
            raise ClientError(f"--file: {error.strerror}") from error
    subject = _subject(email, phone, identity, name)
    if not texts and subject is None:
        raise ClientError("give --text or --file, or who it is: --email, --phone, --identity, --name")
    fields: dict[str, Any] = {"callback_url": callback_url} if callback_url else {}
    if resubmits:
        earlier = read_json(resubmits, "--resubmits").get("receipt", {})
        nonces = [record["nonce"] for record in earlier.get("records", ())]
        fields["resubmits"] = {"ref": earlier.get("ref"), "nonces": nonces}
    out = _new_file(receipt) if receipt else None  # before anything is sent: the receipt is given once
    found = connect().submit(model, texts, subject=subject, regulation=regulation, **fields)
    path = receipt or Path(f"receipt-{found['id']}.json")
    with out or _new_file(path) as file_of_receipt:
        file_of_receipt.write(json.dumps(found, indent=1))
    say(f"The receipt is in {path}. Keep it with the texts: it is given once.")
    show(found, as_json, "id", "status", "due_at")


def _new_file(path: Path) -> TextIO:
    """A file that was not there, for its owner alone.

    Raises:
        ClientError: It was, or cannot be made.
    """
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror}") from error


@requests.command("preview")
def requests_preview(
    model: Model,
    email: Emails = None,
    phone: Phones = None,
    identity: Identities = None,
    name: Names = None,
    as_json: AsJson = False,
) -> None:
    """What a request of this person would unlearn, and when; makes none. Texts are shown to keys that may approve."""
    subject = _subject(email, phone, identity, name)
    if subject is None:
        raise ClientError("say who it is: --email, --phone, --identity, --name")
    found = connect().preview(model, subject)
    if as_json:
        show(found, as_json)
        return
    counts = ", ".join(f"{count} by {kind}" for kind, count in found["counts"].items() if count)
    where = ", ".join(f"{corpus['corpus']} ({corpus['records']:,} records)" for corpus in found["searched"])
    told = {"found": counts or "nothing", "searched": where, "approval": "is needed" if found["needs_approval"] else ""}
    show({**told, "batch": found["batch"], "due_at": found["due_at"]}, as_json)
    if found["matches"]:
        table(found["matches"], as_json, "kind", "text")


@requests.command("list")
def requests_list(
    status: str | None = None,
    model: str | None = None,
    due_days: Annotated[float | None, typer.Option(help="due within so many days, or past")] = None,
    as_json: AsJson = False,
) -> None:
    """Requests, newest first, or with --due-days by their deadlines."""
    due = (datetime.now(UTC) + timedelta(days=due_days)).isoformat() if due_days is not None else None
    filters = {"status": status, "model": model, "due_before": due}
    asked = {name: value for name, value in filters.items() if value is not None}
    client = connect()
    found = list(client.every(client.requests, **asked))
    if due:
        found.sort(key=lambda request: request["due_at"])
    table(found, as_json, "id", "model", "status", "waits_for", "due_at", "verdict", "reason")


@requests.command("show")
def requests_show(request_id: Id, as_json: AsJson = False) -> None:
    """Show a request."""
    show(connect().request(request_id), as_json)


@requests.command("cancel")
def requests_cancel(request_id: Id, as_json: AsJson = False) -> None:
    """Cancel a request that is pending."""
    show(connect().cancel(request_id), as_json, "id", "status")


@requests.command("extend")
def requests_extend(
    request_id: Id,
    reason: Annotated[str, typer.Option(help="complexity, number_of_requests or reasonably_necessary")],
    as_json: AsJson = False,
) -> None:
    """Extend an open request's deadline, once: by two months (GDPR) or 45 days (CCPA)."""
    show(connect().extend(request_id, reason), as_json, "id", "status", "due_at")


@requests.command("matches")
def requests_matches(request_id: Id, as_json: AsJson = False) -> None:
    """What a request that waits for approval would unlearn."""
    table(connect().all_matches(request_id), as_json, "match", "kind", "text")


@requests.command("approve")
def requests_approve(
    request_id: Id,
    match: Annotated[list[int] | None, typer.Option(help="numbers of `matches`; without any: all of them")] = None,
    as_json: AsJson = False,
) -> None:
    """Approve a request that waits for it; somebody else than its submitter."""
    show(connect().approve(request_id, match), as_json, "id", "status", "waits_for")


@requests.command("reject")
def requests_reject(
    request_id: Id,
    reason: Annotated[str, typer.Option(help="not_the_subject, identity_not_proven, not_covered or other")],
    as_json: AsJson = False,
) -> None:
    """Refuse a request that waits for approval."""
    show(connect().reject(request_id, reason), as_json, "id", "status", "reason")


@requests.command("retry")
def requests_retry(request_id: Id, as_json: AsJson = False) -> None:
    """Put a failed request back in line, once its reason is removed."""
    show(connect().retry_request(request_id), as_json, "id", "status", "due_at")


@requests.command("watch")
def requests_watch(request_id: Id, as_json: AsJson = False) -> None:
    """Follow a request to its end, live; exit code 0 if it completed or needed no training."""
    found = watch(connect(), request_id, quiet=as_json)
    show(found, as_json, "id", "status", "waits_for", "verdict", "version", "reason")
    raise typer.Exit(0 if found["status"] in ("completed", "not_memorised") else 1)


def watch(client: "Client", request_id: str, *, quiet: bool = False) -> Any:
    """Show a request's progress until it ends, or waits for somebody; returns it."""
    with Progress(*COLUMNS, console=screen, disable=quiet) as bars:
        bar = bars.add_task("waiting for a batch", total=1.0)
        found = client.until_batched(request_id)
        if not found["job_id"] and not found["finished_at"]:
            if found["waits_for"] == "approval":
                say("It waits for somebody's approval: unlearnd requests matches ID, then approve or reject.")
            return found
        if found["job_id"]:
            for kind, data in client.events(found["job_id"]):
                describe = {"stage": data.get("stage"), "progress": data.get("stage"), "epoch": _epoch(data)}
                bars.update(bar, description=describe.get(kind) or kind, completed=data.get("progress"))
        return client.wait(request_id)


def _epoch(data: dict[str, Any]) -> str | None:
    return (
        f"epoch {data['epoch']}: MA {data['ma']:.3f}, limit {data['ma_limit']:.3f}"
        if data.get("ma") is not None
        else None
    )
