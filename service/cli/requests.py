"""`unlearnd requests`: submit deletion requests, follow them, decide on those that wait for approval."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import connect, create_private, progress_bars, read_json, read_records, read_resubmission
from service.cli.console import AsJson, Most, app, print_message, show, table
from service.cli.rows import read_rows, submit_rows
from service.domain.errors import ClientError

if TYPE_CHECKING:
    from service.client.answers import EventData, RequestAnswer
    from service.client.http import Client
    from service.domain.subject import Identity, Subject

requests = typer.Typer(help="Submit deletion requests and follow them.", no_args_is_help=True)
app.add_typer(requests, name="requests")

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The id of the request.")]
ModelName = Annotated[str, typer.Option(help="The name of the model.")]
Emails = Annotated[
    list[str] | None, typer.Option("--email", help="An e-mail address of the person. Repeat it for more addresses.")
]
Phones = Annotated[
    list[str] | None,
    typer.Option("--phone", help="A phone number, with its +country prefix or as written in the corpora's region."),
]
Identities = Annotated[
    list[str] | None,
    typer.Option("--identity", help="TYPE:FORMAT:VALUE, such as controller_customer_id:raw:4711 or email:sha256:HEX."),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", help="A name of the person. Records that match only a name wait for approval."),
]
Texts = Annotated[list[str] | None, typer.Option(help="A record. Repeat it for more records.")]
TextsFile = Annotated[
    Path | None,
    typer.Option(
        help="JSONL with `text`, or plain text with one record a line: the records of one request."
        " A CSV file: a request for each row; its columns are text, email, phone, name, reference, regulation and"
        " received_at."
    ),
]
Reference = Annotated[str | None, typer.Option(help="Your case number. The service stores it sealed.")]
IdempotencyPrefix = Annotated[
    str | None,
    typer.Option(
        help="For a CSV file: rows that were accepted with the same prefix are not submitted again."
        " The default is a digest of the file."
    ),
]
Regulation = Annotated[str, typer.Option(help="gdpr, ccpa or other. It sets the deadline.")]
CallbackUrl = Annotated[str | None, typer.Option(help="The URL that the service calls when the request has ended.")]
EarlierReceipt = Annotated[Path | None, typer.Option(help="The receipt of an earlier request with the same texts.")]
ProbesFile = Annotated[Path | None, typer.Option(help="JSON: a list of prompts that must bring out no secret.")]
ReceiptFile = Annotated[Path | None, typer.Option(help="The file for the receipt. The default is receipt-ID.json.")]


def _parse_subject(
    emails: list[str] | None, phones: list[str] | None, identities: list[str] | None, names: list[str] | None
) -> "Subject | None":
    """The person that the options name; None if they name nobody."""
    parsed: list[Identity] = [{"type": "email", "value": value} for value in emails or ()]
    parsed += [{"type": "phone", "value": value} for value in phones or ()]
    for identity in identities or ():
        kind, form, value = ([*identity.split(":", 2), "", ""])[:3]
        if not value:
            raise ClientError("--identity: give TYPE:FORMAT:VALUE")
        parsed.append({"type": kind, "format": form, "value": value})
    subject: Subject = {"identities": parsed, "names": names or []}
    return subject if parsed or names else None


@requests.command("submit")
def requests_submit(
    model: ModelName,
    text: Texts = None,
    file: TextsFile = None,
    email: Emails = None,
    phone: Phones = None,
    identity: Identities = None,
    name: Names = None,
    regulation: Regulation = "gdpr",
    callback_url: CallbackUrl = None,
    reference: Reference = None,
    probes: ProbesFile = None,
    resubmits: EarlierReceipt = None,
    receipt: ReceiptFile = None,
    idempotency_prefix: IdempotencyPrefix = None,
    as_json: AsJson = False,
) -> None:
    """Submit a deletion request, or one for each row of a CSV file. Writes the receipts to a file.

    The service gives a receipt only once. With a CSV file the exit code is 1 if a row was refused.
    """
    if file and file.suffix.lower() == ".csv":
        if text or email or phone or identity or name or reference or resubmits or probes:
            raise ClientError("--file: each row of a CSV file is a request: give texts, people and references there")
        rows = read_rows(file, {"model": model, "regulation": regulation, "callback_url": callback_url})
        submit_rows(file, rows, idempotency_prefix, receipt, as_json=as_json)
        return
    if idempotency_prefix:
        raise ClientError("--idempotency-prefix is for the rows of a CSV file")
    texts = [*(text or ()), *(read_records(file) if file else ())]
    subject = _parse_subject(email, phone, identity, name)
    if not texts and subject is None:
        raise ClientError("give --text or --file, or name the person with --email, --phone, --identity or --name")
    options = {
        "callback_url": callback_url,
        "reference": reference,
        "probes": read_json(probes, "--probes", kind=list) if probes else None,
        "resubmits": read_resubmission(resubmits) if resubmits else None,
    }
    fields: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    # A file that cannot be made must fail here: the service gives the receipt only once.
    receipt_handle = create_private(receipt) if receipt else None
    request = connect().submit(model, texts, subject=subject, regulation=regulation, **fields)
    path = receipt or Path(f"receipt-{request['id']}.json")
    with receipt_handle or create_private(path) as handle:
        handle.write(json.dumps(request, indent=1))
    print_message(f"The receipt is in {path}. Keep it with the texts: the service gives it only once.")
    show(request, as_json, "id", "status", "due_at")


@requests.command("preview")
def requests_preview(
    model: ModelName,
    email: Emails = None,
    phone: Phones = None,
    identity: Identities = None,
    name: Names = None,
    as_json: AsJson = False,
) -> None:
    """Show what a request for this person would unlearn, and when. Submits nothing.

    The texts are shown only to API keys that may approve.
    """
    subject = _parse_subject(email, phone, identity, name)
    if subject is None:
        raise ClientError("say who it is: --email, --phone, --identity, --name")
    preview = connect().preview(model, subject)
    if as_json:
        show(preview, as_json)
        return
    counts = ", ".join(f"{count} by {kind}" for kind, count in preview["counts"].items() if count)
    searched = ", ".join(f"{corpus['corpus']} ({corpus['records']:,} records)" for corpus in preview["searched"])
    approval = "is needed" if preview["needs_approval"] else ""
    summary = {"found": counts or "nothing", "searched": searched, "approval": approval}
    show({**summary, "batch": preview["batch"], "due_at": preview["due_at"]}, as_json)
    if preview["matches"]:
        table(preview["matches"], as_json, "kind", "text")


@requests.command("list")
def requests_list(
    status: Annotated[str | None, typer.Option(help="Only requests with this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only requests of this model.")] = None,
    due_days: Annotated[float | None, typer.Option(help="Only requests due within this many days, or overdue.")] = None,
    reference: Annotated[str | None, typer.Option(help="Only requests with this case number.")] = None,
    limit: Most = None,
    as_json: AsJson = False,
) -> None:
    """List requests, newest first; with --due-days, the earliest deadline first."""
    due = (datetime.now(UTC) + timedelta(days=due_days)).isoformat() if due_days is not None else None
    options = {"status": status, "model": model, "due_before": due, "reference": reference}
    filters = {name: value for name, value in options.items() if value is not None}
    client = connect()
    rows = list(client.list_all(client.requests, most=None if due else limit, **filters))
    if due:  # the service's order is another one
        rows = sorted(rows, key=lambda request: str(request["due_at"]))[:limit]
    table(rows, as_json, "id", "reference", "model", "status", "waits_for", "due_at", "verdict", "reason")


@requests.command("show")
def requests_show(request_id: RequestId, as_json: AsJson = False) -> None:
    """Show a request."""
    request = connect().request(request_id)
    decisions, callbacks = ([] if as_json else request.pop(name, None) or [] for name in ("decisions", "callbacks"))
    show(request, as_json)
    if decisions:
        table(decisions, as_json, "decision", "name", "reason", "at", "api_key_id")
    if callbacks:
        table(callbacks, as_json, "status", "delivered_at", "attempts", "given_up")


@requests.command("cancel")
def requests_cancel(
    request_id: RequestId,
    reason: Annotated[str | None, typer.Option(help="withdrawn, duplicate, mistake or other.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a pending request."""
    show(connect().cancel(request_id, reason), as_json, "id", "status", "reason")


@requests.command("extend")
def requests_extend(
    request_id: RequestId,
    reason: Annotated[str, typer.Option(help="complexity, number_of_requests or reasonably_necessary.")],
    as_json: AsJson = False,
) -> None:
    """Extend an open request's deadline once, by two months (GDPR) or 45 days (CCPA)."""
    show(connect().extend(request_id, reason), as_json, "id", "status", "due_at")


@requests.command("matches")
def requests_matches(request_id: RequestId, as_json: AsJson = False) -> None:
    """List what a request that waits for approval would unlearn."""
    table(connect().all_matches(request_id), as_json, "match", "kind", "text")


@requests.command("approve")
def requests_approve(
    request_id: RequestId,
    match: Annotated[
        list[int] | None, typer.Option(help="A number from `matches`. Repeat it. The default is all matches.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="identity_checked, person_confirmed or other.")] = None,
    as_json: AsJson = False,
) -> None:
    """Approve a request that waits for approval. Its submitter may not approve it."""
    show(connect().approve(request_id, match, reason), as_json, "id", "status", "waits_for")


@requests.command("reject")
def requests_reject(
    request_id: RequestId,
    reason: Annotated[str, typer.Option(help="not_the_subject, identity_not_proven, not_covered or other.")],
    as_json: AsJson = False,
) -> None:
    """Refuse a request that waits for approval."""
    show(connect().reject(request_id, reason), as_json, "id", "status", "reason")


@requests.command("retry")
def requests_retry(
    request_id: RequestId,
    reason: Annotated[str | None, typer.Option(help="cause_removed, policy_changed or other.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a failed request pending again, once the cause of the failure is removed."""
    show(connect().retry_request(request_id, reason), as_json, "id", "status", "due_at")


@requests.command("purge")
def requests_purge(request_id: RequestId, as_json: AsJson = False) -> None:
    """Purge the texts of a request that has ended, before its time. It cannot be retried after that."""
    show(connect().purge_request(request_id), as_json, "id", "status")


@requests.command("resolve")
def requests_resolve(
    request_id: RequestId,
    reason: Annotated[str, typer.Option(help="handled_otherwise, withdrawn, not_covered or other.")],
    as_json: AsJson = False,
) -> None:
    """Record that a failed request was dealt with in another way. Until then it stays due, and alarms."""
    show(connect().resolve_request(request_id, reason), as_json, "id", "status", "resolved_at", "resolved_reason")


@requests.command("watch")
def requests_watch(request_id: RequestId, as_json: AsJson = False) -> None:
    """Follow a request live until it ends. The exit code is 0 if it completed or needed no training."""
    request = watch(connect(), request_id, quiet=as_json)
    show(request, as_json, "id", "status", "waits_for", "verdict", "version", "reason")
    raise typer.Exit(0 if request["status"] in ("completed", "not_memorised") else 1)


def watch(client: "Client", request_id: str, *, quiet: bool = False) -> "RequestAnswer":
    """Show a request's progress until it ends or waits for a person; return it."""
    with progress_bars(hidden=quiet) as bars:
        bar = bars.add_task("waiting for a batch", total=1.0)
        request = client.until_batched(request_id)
        if not request["job_id"] and not request["finished_at"]:
            if request["waits_for"] == "approval":
                print_message("The request waits for approval: unlearnd requests matches ID, then approve or reject.")
            return request
        if request["job_id"]:
            for kind, data in client.events(request["job_id"]):
                bars.update(bar, description=_describe(kind, data), completed=data.get("progress"))
        return client.wait(request_id)


def _describe(kind: str, data: "EventData") -> str:
    """A job event in a few words; its kind where there is nothing more to say."""
    if kind == "epoch" and data.get("ma") is not None:
        return f"epoch {data['epoch']}: MA {data['ma']:.3f}, threshold {data['ma_limit']:.3f}"
    stage = data.get("stage") if kind in ("stage", "progress") else None
    return str(stage or kind)
