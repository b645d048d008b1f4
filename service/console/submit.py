"""New requests: one by a form, many by a CSV file that is looked at before anything is submitted."""

import csv
import hashlib
import io
import json
import uuid
from typing import Any

from fastapi import APIRouter, Response
from pydantic import ValidationError

from service.api.errors import field_name
from service.client.csv_rows import COLUMNS, Row, parse_rows, row_keys
from service.console.api_client import Api, ApiDep, Refused
from service.console.pages import PageRoute, page
from service.console.requests import PATH, model_names
from service.console.sign_in import CheckedForm, Form, Visit, Visitor
from service.domain.errors import ClientError
from service.schemas.requests import RequestIn

router = APIRouter(prefix="/console/requests", route_class=PageRoute, include_in_schema=False)


@router.get("/new")
async def new(visitor: Visitor, api: ApiDep) -> Response:
    """The forms."""
    return await _forms(visitor, api, Form())


async def _forms(
    visitor: Visit, api: Api, form: Form, messages: list[str] | None = None, status: int = 200
) -> Response:
    shown = {"models": await model_names(api, visitor), "columns": COLUMNS, "key": form.one("key") or uuid.uuid4().hex}
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
        accepted = await api.post(PATH, body, **{"Idempotency-Key": form.one("key") or uuid.uuid4().hex})
    except Refused as refused:
        return await _forms(visitor, api, form, refused.messages, refused.status)
    receipt = json.dumps({"id": accepted["id"], "receipt": accepted["receipt"]})
    return page("receipt.html", visitor, accepted=[accepted], refused=[], receipts=receipt)


def _moment(value: str) -> str:
    """A day as the moment at which it begins; anything else as it is."""
    return f"{value}T00:00:00Z" if len(value) == len("2026-01-31") else value


def _read(form: Form, text: str) -> list[Row]:
    """The rows of a CSV file.

    Raises:
        ClientError: Its form is wrong.
    """
    rows = parse_rows(io.StringIO(text.removeprefix("\ufeff"), newline=""), {"model": form.one("model")})
    for row in rows:
        if isinstance(received := row.request.get("received_at"), str):
            row.request["received_at"] = _moment(received)
    return rows


@router.post("/rows")
async def look_at_rows(visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Show what the rows of a file would make, and what is wrong with each. Nothing is submitted."""
    text = form.get("file", [""])[0]
    try:
        rows = _read(form, text)
    except ClientError as error:
        return await _forms(visitor, api, Form(), [f"The file: {error}."], 422)
    shown = [_shown(row) for row in rows]
    good = sum(not row["problem"] for row in shown)
    return page("rows.html", visitor, rows=shown, good=good, model=form.one("model"), csv=text)


def _shown(row: Row) -> dict[str, Any]:
    """A row of the preview: what it asks for, and what is wrong with it."""
    subject: Any = row.request.get("subject") or {"identities": [], "names": []}
    person = [identity["value"] for identity in subject["identities"]] + subject["names"]
    records: Any = row.request.get("records") or []
    what = [*person, *(f"a text of {len(record['text'])} characters" for record in records)]
    fields = {name: row.request.get(name) for name in ("reference", "regulation", "received_at")}
    return {"number": row.number, "fields": fields, "what": ", ".join(what), "problem": _problem(row)}


def _problem(row: Row) -> str:
    """What is wrong with a row; empty if nothing is. It never repeats a value."""
    try:
        RequestIn.model_validate(row.request)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        return f"{field_name(first['loc'])}: {str(first['msg']).removeprefix('Value error, ')}"
    return ""


@router.post("/rows/submit")
async def submit_rows(visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Submit the rows that nothing is wrong with. To send the same file twice makes no second request."""
    text = form.get("csv", [""])[0]
    try:
        rows = [row for row in _read(form, text) if not _problem(row)]
    except (ClientError, csv.Error) as error:
        return await _forms(visitor, api, Form(), [f"The file: {error}."], 422)
    keys = row_keys(rows, hashlib.sha256(text.encode()).hexdigest()[:16])
    lines = [json.dumps({**row.request, "idempotency_key": key}) for row, key in zip(rows, keys, strict=True)]
    headers = {"Content-Type": "application/x-ndjson"}
    answer = await api.call("POST", f"{PATH}:bulk", content="\n".join(lines), headers=headers)
    results = [json.loads(line) for line in answer.text.splitlines()]
    accepted = [result for result in results if result.get("id")]
    refused = [
        (row.number, result["problem"]["detail"])
        for row, result in zip(rows, results, strict=True)
        if not result.get("id")
    ]
    receipts = "\n".join(json.dumps({"id": result["id"], "receipt": result["receipt"]}) for result in accepted)
    return page("receipt.html", visitor, accepted=accepted, refused=refused, receipts=receipts)
