"""Records for people who do not read JSON: the certificate of a job, a report on a period, a letter to the person."""

import base64
import json
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Response

from service.api.deps import ServicesDep
from service.audit.canonical import loads
from service.console.api_client import Api, ApiDep
from service.console.documents import Document, pdf
from service.console.jobs import PATH as JOBS
from service.console.letter import letter_about
from service.console.pages import HEADERS, HEAVY, PageRoute, page
from service.console.period import period_document
from service.console.record import record_document
from service.console.requests import PATH as REQUESTS_PATH
from service.console.requests import Day
from service.console.sign_in import Visit, Visitor
from service.console.words import REQUESTS
from service.domain.errors import Conflict, Invalid

router = APIRouter(prefix="/console/records", route_class=PageRoute, include_in_schema=False)


@router.get("")
async def listing(visitor: Visitor, api: ApiDep, cursor: str = "") -> Response:
    """The jobs with a record, newest first, and the form for a report on a period."""
    listed = await api.get(JOBS, stage="done", cursor=cursor)
    today = datetime.now(UTC).date()
    begins = (today.replace(day=1) - timedelta(days=1)).replace(day=1)
    ends = today.replace(day=1).isoformat()
    return page("records.html", visitor, listing=listed, begins=begins.isoformat(), ends=ends)


@router.get("/report")
async def report(visitor: Visitor, api: ApiDep, services: ServicesDep, begins: Day = "", ends: Day = "") -> Response:
    """A report on a period."""
    document = await _report(api, services.settings.issuer, begins, ends)
    links = [(f"/console/records/report.pdf?begins={begins}&ends={ends}", "Download as PDF")]
    return page("document.html", visitor, document=document, links=links, section="Records")


@router.get("/report.pdf")
async def report_pdf(
    visitor: Visitor, api: ApiDep, services: ServicesDep, begins: Day = "", ends: Day = ""
) -> Response:
    """The same as PDF."""
    document = await _report(api, services.settings.issuer, begins, ends)
    return await _download(document, f"report-{begins}-{ends}.pdf")


async def _report(api: Api, issuer: str, begins: str, ends: str) -> Document:
    """A report on a period; `ends` is its first day no more."""
    try:
        first, after = (datetime.combine(date.fromisoformat(day), time(), UTC) for day in (begins, ends))
    except ValueError:
        raise Invalid("Give the first day of the period, and the first day after it.", field="begins") from None
    numbers = await api.get("/v1/report", **{"from": first.isoformat(), "to": after.isoformat()})
    return period_document(issuer, first.date(), after.date(), numbers)


@router.get("/letter/{request_id}")
async def letter(request_id: UUID, visitor: Visitor, api: ApiDep) -> Response:
    """A letter to the person about a request that has ended."""
    document = await _letter(visitor, api, request_id)
    links = [(f"/console/records/letter/{request_id}/letter.pdf", "Download as PDF")]
    return page("document.html", visitor, document=document, links=links, section="Requests")


@router.get("/letter/{request_id}/letter.pdf")
async def letter_pdf(request_id: UUID, visitor: Visitor, api: ApiDep) -> Response:
    """The same as PDF."""
    return await _download(await _letter(visitor, api, request_id), "letter.pdf")


async def _letter(visitor: Visit, api: Api, request_id: UUID) -> Document:
    request = await api.get(f"{REQUESTS_PATH}/{request_id}")
    if request["finished_at"] is None:
        raise Conflict("The request has not ended: there is nothing to tell the person yet.")
    version = None
    if request["version"] is not None and visitor.may("read", "submit", "download"):
        version = await api.get(f"/v1/models/{request['model']}/versions/{request['version']}")
    return letter_about(request, version)


@router.get("/{job_id}")
async def record(job_id: UUID, visitor: Visitor, api: ApiDep) -> Response:
    """The record of a job as a page."""
    document, _ = await _record(visitor, api, job_id)
    base = f"/console/records/{job_id}"
    links = [(f"{base}/record.pdf", "Download as PDF"), (f"{base}/certificate.dsse.json", "Download the certificate")]
    return page("document.html", visitor, document=document, links=links, section="Records")


@router.get("/{job_id}/record.pdf")
async def record_pdf(job_id: UUID, visitor: Visitor, api: ApiDep) -> Response:
    """The same as PDF."""
    document, issued = await _record(visitor, api, job_id)
    return await _download(document, f"record-{job_id}.pdf", int(issued.timestamp()))


@router.get("/{job_id}/certificate.dsse.json")
async def certificate(job_id: UUID, visitor: Visitor, api: ApiDep) -> Response:  # the route asks who it is
    """The signed certificate itself, for `unlearnd verify`."""
    text = await api.text(f"{JOBS}/{job_id}/certificate")
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{job_id}.certificate.dsse.json"'}
    return Response(text, media_type="application/json", headers=headers)


async def _record(visitor: Visit, api: Api, job_id: UUID) -> tuple[Document, datetime]:
    """The document of a job, and when its certificate was issued."""
    envelope = json.loads(await api.text(f"{JOBS}/{job_id}/certificate"))
    statement: Any = loads(base64.b64decode(envelope["payload"]))
    requests = []
    if visitor.may(*REQUESTS):
        requests = (await api.get(REQUESTS_PATH, job=job_id, limit=200))["items"]
    issued = datetime.fromisoformat(statement["predicate"]["issued_at"])
    return record_document(statement, requests), issued


async def _download(document: Document, name: str, timestamp: int | None = None) -> Response:
    """A document as a PDF with this file name."""
    made = await to_thread.run_sync(pdf, document, timestamp or int(datetime.now(UTC).timestamp()), limiter=HEAVY)
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(made, media_type="application/pdf", headers=headers)
