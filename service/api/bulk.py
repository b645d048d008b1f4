"""`/v1/deletion-requests:bulk`: many deletion requests in one call, a line each, and a result for each line.

A line is a deletion request of its own: what is wrong with one stops no other, and each that was accepted is as durable
as if it had come alone. A call that is lost is sent again: each line that has an `idempotency_key` is accepted once.
"""

import json
from collections.abc import Sequence

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api.deps import RawBody, Submitter, services_from
from service.api.errors import to_answer
from service.api.guard import GuardedRoute
from service.api.json_body import validate
from service.api.limits import admission_from
from service.api.rates import RateLimiter
from service.api.requests import to_receipt, to_submission
from service.db.api_keys import Caller
from service.domain.errors import Invalid, WrongMediaType
from service.domain.submission import Submission
from service.schemas.base import Problem
from service.schemas.requests import BulkRequestIn, BulkResult
from service.sealing import Accepted
from service.steps.path.request import accept_group

NDJSON = "application/x-ndjson"
MAX_LINES = 10_000  # of a call
GROUP = 32  # lines that one transaction stores
THREADS = 4  # of the process, for the groups of all calls: single requests keep most threads and connections
UNAVAILABLE = 503

router = APIRouter(prefix="/v1", tags=["deletion requests"], route_class=GuardedRoute)


class NdjsonResponse(Response):
    """JSON values, one a line."""

    media_type = NDJSON


def line_threads() -> CapacityLimiter:
    """The threads of a process for the groups of all calls."""
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
    At most 10,000 lines, and 8 MiB by default. Each line counts against the rate limit.
    """
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != NDJSON:
        raise WrongMediaType(NDJSON)
    lines = [line for line in raw.split(b"\n") if line.strip()]
    if len(lines) > MAX_LINES:
        raise Invalid(f"The body has more than {MAX_LINES} lines; split it.", field="body", code="too_many_lines")
    threads: CapacityLimiter = request.app.state.line_threads
    results: list[BulkResult] = []
    for start in range(0, len(lines), GROUP):
        group = range(start, min(start + GROUP, len(lines)))
        if results and results[-1].status == UNAVAILABLE:  # each group would wait for the same error in turn
            results += [results[-1].model_copy(update={"index": index}) for index in group]
        else:
            of_group = [lines[index] for index in group]
            results += await to_thread.run_sync(_accept_lines, request, caller, start, of_group, limiter=threads)
    return NdjsonResponse("".join(result.model_dump_json(exclude_unset=True) + "\n" for result in results))


def _accept_lines(request: Request, caller: Caller, start: int, lines: Sequence[bytes]) -> list[BulkResult]:
    """The results of lines that are stored together. A problem is the one that the request alone would have had."""
    rate_limiter: RateLimiter = request.app.state.rate_limiter
    outcomes: list[Accepted | Exception | None] = []
    given: list[tuple[Submission, str | None]] = []
    for line in lines:
        try:
            rate_limiter.count(str(caller.id), request.scope["path"])
            body = validate(BulkRequestIn, line, admission_from(request).max_values)
            given.append((to_submission(body), body.idempotency_key))
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)
    accepted = iter(accept_group(services_from(request), given, caller.id))
    return [
        _to_result(request, index, next(accepted) if outcome is None else outcome)
        for index, outcome in enumerate(outcomes, start)
    ]


def _to_result(request: Request, index: int, outcome: Accepted | Exception) -> BulkResult:
    """The result of one line."""
    if isinstance(outcome, Exception):
        problem = Problem(**json.loads(bytes(to_answer(request, outcome).body)))
        return BulkResult(index=index, status=problem.status, problem=problem)
    return BulkResult(index=index, status=202, id=outcome.request.id, receipt=to_receipt(outcome))
