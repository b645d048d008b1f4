"""`/v1/deletion-requests:bulk`: many deletion requests in one call, a line each, and a result for each line.

A line is a deletion request of its own: what is wrong with one stops no other, and each that was accepted is as durable
as if it had come alone. A call that is lost is sent again: each line that has an `idempotency_key` is accepted once.
"""

import asyncio
import json
from collections.abc import Sequence

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api.deps import RawBody, Submitter, services_from
from service.api.errors import to_answer
from service.api.guard import GuardedRoute
from service.api.json_body import validate
from service.api.rates import RateLimiter
from service.api.requests import to_receipt, to_submission
from service.db.api_keys import Caller
from service.domain.errors import Invalid, WrongMediaType
from service.schemas.base import Problem
from service.schemas.requests import BulkRequestIn, BulkResult
from service.steps.path.request import accept_request

NDJSON = "application/x-ndjson"
MAX_LINES = 1000  # of a call
GROUP = 32  # lines of a call that are under way together, as many as one transaction stores
THREADS = 8  # of the process, for the lines of all calls: single requests keep most threads and connections
UNAVAILABLE = 503

router = APIRouter(prefix="/v1", tags=["deletion requests"], route_class=GuardedRoute)


class NdjsonResponse(Response):
    """JSON values, one a line."""

    media_type = NDJSON


def line_threads() -> CapacityLimiter:
    """The threads of a process for the lines of all calls."""
    return CapacityLimiter(THREADS)


def _described_line(line: type[BaseModel]) -> dict[str, object]:
    """The content of a body in the OpenAPI document, which has no word for a sequence: the schema of one line."""
    schema = line.model_json_schema(ref_template="#/components/schemas/{model}")
    return {NDJSON: {"schema": {name: value for name, value in schema.items() if name != "$defs"}}}


@router.post(
    "/deletion-requests:bulk",
    response_class=NdjsonResponse,
    responses={200: {"content": _described_line(BulkResult), "description": "A result a line"}},
    openapi_extra={"requestBody": {"content": _described_line(BulkRequestIn), "required": True}},
)
async def bulk(request: Request, raw: RawBody, caller: Submitter) -> Response:
    """Accept many deletion requests, each a line of JSON as `POST /v1/deletion-requests` takes it.

    A line also takes `idempotency_key`. Empty lines do not count. The answer has a line for each, in order: `index`
    from 0, `status` (202, or the status that the request alone would have had), then `id` and `receipt`, or `problem`.
    At most 1000 lines, and 8 MiB by default. Each line counts against the rate limit.
    """
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != NDJSON:
        raise WrongMediaType(NDJSON)
    lines = [line for line in raw.split(b"\n") if line.strip()]
    if len(lines) > MAX_LINES:
        raise Invalid(f"The body has more than {MAX_LINES} lines; split it.", field="body", code="too_many_lines")
    results: list[BulkResult] = []
    for start in range(0, len(lines), GROUP):
        results += await _accept_group(request, caller, start, lines[start : start + GROUP], results[-1:])
    return NdjsonResponse("".join(result.model_dump_json(exclude_unset=True) + "\n" for result in results))


async def _accept_group(
    request: Request, caller: Caller, start: int, lines: Sequence[bytes], before: Sequence[BulkResult]
) -> Sequence[BulkResult]:
    """The results of lines that are accepted together; none is tried if the line before them found no database."""
    if before and before[0].status == UNAVAILABLE:  # each line would wait for the same error in turn
        return [before[0].model_copy(update={"index": index}) for index in range(start, start + len(lines))]
    threads: CapacityLimiter = request.app.state.line_threads
    accepting = [
        to_thread.run_sync(_accept_line, request, caller, index, line, limiter=threads)
        for index, line in enumerate(lines, start)
    ]
    return await asyncio.gather(*accepting)


def _accept_line(request: Request, caller: Caller, index: int, line: bytes) -> BulkResult:
    """The result of one line. Its problem is the one that the request alone would have had."""
    rate_limiter: RateLimiter = request.app.state.rate_limiter
    try:
        rate_limiter.count(str(caller.id), request.scope["path"])
        body = validate(BulkRequestIn, line, request.app.state.admission.max_values)
        accepted = accept_request(services_from(request), to_submission(body), caller.id, body.idempotency_key)
    except Exception as error:
        problem = Problem(**json.loads(bytes(to_answer(request, error).body)))
        return BulkResult(index=index, status=problem.status, problem=problem)
    return BulkResult(index=index, status=202, id=accepted.request.id, receipt=to_receipt(accepted))
