"""New requests: one by a form, many by a CSV file that is looked at before anything is submitted."""

import base64
import io
import json
import uuid
from collections.abc import Iterator
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.api.errors import field_name
from service.api.limits import admission_from
from service.console.api_client import Api, ApiDep, Refused
from service.console.pages import PageRoute, page
from service.console.requests import PATH, model_names
from service.console.sign_in import CheckedForm, Form, Visit, Visitor
from service.csv_rows import COLUMNS, Row, parse_rows, row_keys
from service.domain.errors import ClientError, Forbidden
from service.schemas.requests import RequestIn

router = APIRouter(prefix="/console/requests", route_class=PageRoute, include_in_schema=False)
MAX_ROWS, MAX_BYTES = 10_000, 2**20  # of a file; of a call
SHOWN = 200  # rows of a preview: the first good and the first bad ones


@router.get("/new")
async def new(visitor: Visitor, api: ApiDep) -> Response:
    """The forms."""
    return await _forms(visitor, api, Form())


async def _forms(
    visitor: Visit, api: Api, form: Form, messages: list[str] | None = None, status: int = 200
) -> Response:
    shown = {"models": await model_names(api, visitor), "columns": COLUMNS, "key": _key(form)}
    if not visitor.may("submit"):
        raise Forbidden("This needs the scope submit.")
    return page("new_request.html", visitor, status, form=form, messages=messages, **shown)


@router.post("/new")
async def submit(visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Submit one request. The form has an Idempotency-Key: to send it twice makes one request."""
    body: dict[str, object] = {**form.given("model", "regulation", "reference")}
    if form.one("received_at"):
        body["received_at"] = _moment(form.one("received_at"))
    identities = [{"type": kind, "value": form.one(kind)} for kind in ("email", "phone") if form.one(kind)]
    names = [form.one("name")] if form.one("name") else []
    if identities or names:
        body["subject"] = {"identities": identities, "names": names}
    if form.one("text"):
        body["records"] = [{"text": form.one("text")}]
    try:
        accepted = await api.post(PATH, body, **{"Idempotency-Key": _key(form)})
    except Refused as refused:
        return await _forms(visitor, api, form, refused.messages, refused.status)
    receipt = json.dumps({"id": accepted["id"], "receipt": accepted["receipt"]})
    return page("receipt.html", visitor, accepted=[accepted], refused=[], receipts=receipt)


def _key(form: Form) -> str:
    """The Idempotency-Key in a form, or a new one."""
    key = form.one("key")
    return key if key.isascii() and key.isalnum() else uuid.uuid4().hex


def _moment(value: str) -> str:
    """A day as the moment at which it begins; anything else as it is."""
    return f"{value}T00:00:00Z" if len(value) == len("2026-01-31") else value


def _read(form: Form, text: str) -> tuple[list[Row], list[str]]:
    """The rows of a CSV file, and what is wrong with each; an empty string if nothing is.

    Raises:
        ClientError: The form of the file is wrong, or it is too large.
    """
    rows = parse_rows(io.StringIO(text.removeprefix("\ufeff"), newline=""), {"model": form.one("model")})
    if len(rows) > MAX_ROWS:
        raise ClientError(f"it has {len(rows)} rows; {MAX_ROWS} may come at once")
    for row in rows:
        if isinstance(received := row.request.get("received_at"), str):
            row.request["received_at"] = _moment(received)
    return rows, [_problem(row) for row in rows]


async def _read_apart(request: Request, form: Form, text: str) -> tuple[list[Row], list[str]]:
    """The same in a thread: the event loop answers others meanwhile."""
    admission = admission_from(request)
    return await to_thread.run_sync(_read, form, text, limiter=admission.parsers)


@router.post("/rows")
async def look_at_rows(request: Request, visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Show what the rows of a file would make, and what is wrong with each. Nothing is submitted."""
    text = form.get("file", [""])[0]
    try:
        rows, problems = await _read_apart(request, form, text)
    except ClientError as error:
        return await _forms(visitor, api, Form(), [f"The file: {error}."], 422)
    bad = [_shown(row, problem) for row, problem in zip(rows, problems, strict=True) if problem]
    good = [_shown(row, problem) for row, problem in zip(rows, problems, strict=True) if not problem]
    shown = sorted([*bad[:SHOWN], *good[:SHOWN]], key=lambda row: row["number"])
    counts = {"good": len(good), "total": len(rows), "hidden": len(rows) - len(shown)}
    carried = base64.b64encode(text.encode()).decode()  # a text area would change the ends of its lines
    return page("rows.html", visitor, rows=shown, model=form.one("model"), csv=carried, **counts)


def _shown(row: Row, problem: str) -> dict[str, Any]:
    """A row of the preview: what it asks for, and what is wrong with it."""
    subject: Any = row.request.get("subject") or {"identities": [], "names": []}
    person = [identity["value"] for identity in subject["identities"]] + subject["names"]
    records: Any = row.request.get("records") or []
    what = [*person, *(f"a text of {len(record['text'])} characters" for record in records)]
    fields = {name: row.request.get(name) for name in ("reference", "regulation", "received_at")}
    return {"number": row.number, "fields": fields, "what": ", ".join(what), "problem": problem}


def _problem(row: Row) -> str:
    """What is wrong with a row; empty if nothing is. It never repeats a value."""
    try:
        RequestIn.model_validate(row.request)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        return f"{field_name(first['loc'])}: {str(first['msg']).removeprefix('Value error, ')}"
    return ""


@router.post("/rows/submit")
async def submit_rows(request: Request, visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Submit the rows that nothing is wrong with.

    A row makes one request, however often its file is sent: also after other rows of it were corrected.
    """
    try:
        text = base64.b64decode(form.one("csv"), validate=True).decode()
        every, problems = await _read_apart(request, form, text)
    except (ClientError, ValueError) as error:
        return await _forms(visitor, api, Form(), [f"The file: {error}."], 422)
    rows = [row for row, problem in zip(every, problems, strict=True) if not problem]
    lines = [
        json.dumps({**row.request, "idempotency_key": key}, ensure_ascii=False).encode()
        for row, key in zip(rows, row_keys(rows, "console"), strict=True)
    ]
    results = [result for part in _parts(lines) for result in await _submit(api, part)]
    accepted = [result for result in results if result.get("id")]
    refused = [
        (row.number, result["problem"]["detail"])
        for row, result in zip(rows, results, strict=True)
        if not result.get("id")
    ]
    receipts = "\n".join(json.dumps({"id": result["id"], "receipt": result["receipt"]}) for result in accepted)
    return page("receipt.html", visitor, accepted=accepted, refused=refused, receipts=receipts)


def _parts(lines: list[bytes]) -> Iterator[list[bytes]]:
    """The lines in calls of a bounded size."""
    part: list[bytes] = []
    for line in lines:
        if part and sum(map(len, part)) + len(line) > MAX_BYTES:
            yield part
            part = []
        part.append(line)
    if part:
        yield part


async def _submit(api: Api, lines: list[bytes]) -> list[dict[str, Any]]:
    """The results of one bulk call."""
    headers = {"Content-Type": "application/x-ndjson"}
    answer = await api.call("POST", f"{PATH}:bulk", content=b"\n".join(lines), headers=headers)
    return [json.loads(line) for line in answer.text.splitlines()]
