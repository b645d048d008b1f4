"""The route of every endpoint. It knows who asks before it reads a body, and bounds the body before it is parsed.

In this order, each step cheaper than the next: the caller and its scope from the headers, the names of the query
parameters, the media type, the size of the body while it arrives, the number of its values, their form, and the
caller's turn. FastAPI would read and parse the body first.
"""

from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import ClassVar, cast
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from service.api.deps import SIGNED_IN, WithScope, raw_body
from service.api.json_body import check_media_type, parse
from service.api.limits import Admission, admission_from, peer

Handler = Callable[[Request], Coroutine[None, None, Response]]


class ReadRequest(Request):
    """A request whose body was read and, if the endpoint takes JSON, validated."""

    def __init__(self, request: Request, raw: bytes, value: object) -> None:
        """Give FastAPI `raw` as the body and `value` as what it holds."""
        super().__init__(request.scope, request.receive)
        self._raw, self._value = raw, value

    async def body(self) -> bytes:
        """The bytes of the body."""
        return self._raw

    async def json(self) -> object:
        """The validated body."""
        return self._value


class GuardedRoute(APIRoute):
    """A route that guards its endpoint."""

    ignores_parameters: ClassVar[bool] = False  # unknown query parameters

    def admit(self, admission: Admission, holder: str) -> AbstractAsyncContextManager[None]:
        """Admit a request of a holder: it takes one of its turns."""
        return admission.turn(holder)

    def get_route_handler(self) -> Handler:
        """Wrap the endpoint."""
        handle = super().get_route_handler()
        dependencies = list(_dependencies(self.dependant))
        with_scope = next((item.call for item in dependencies if isinstance(item.call, WithScope)), None)
        has_raw_body = any(item.call is raw_body for item in dependencies)
        parameters = {field.alias for item in dependencies for field in item.query_params}
        body = cast(type[BaseModel] | None, self.body_field and self.body_field.field_info.annotation)

        async def guard(request: Request) -> Response:
            caller = await with_scope.identify(request) if with_scope else None
            holder = str(caller.id) if caller else peer(request)
            request.scope["unlearnd.caller"], request.scope["unlearnd.holder"] = caller, holder
            if request.scope["query_string"] and not self.ignores_parameters:
                _check_parameters(request.scope["query_string"], parameters)
            admission = admission_from(request)
            is_inner = SIGNED_IN in request.scope  # a page's own call: the page has the place, and waits for the turn
            turn = admission.turns.turn(holder) if is_inner else self.admit(admission, holder)
            if body is None and not has_raw_body:
                async with turn:
                    return await handle(request)
            if body is not None:
                check_media_type(request.headers)
            try:
                async with admission.body(request, holder, has_key=caller is not None) as raw:
                    value = await parse(body, raw, admission.max_values, admission.parsers) if body else None
                    async with turn:
                        return await handle(ReadRequest(request, raw, value))
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it

        return guard


class UncountedRoute(GuardedRoute):
    """A route that is always answered, however much there is to do."""

    def admit(self, admission: Admission, holder: str) -> AbstractAsyncContextManager[None]:
        """Admit every request."""
        return nullcontext()


class SubmissionRoute(GuardedRoute):
    """A route whose endpoint is a coroutine that stores a request. It holds no thread while it waits."""

    def admit(self, admission: Admission, holder: str) -> AbstractAsyncContextManager[None]:
        """Admit a submission of a holder: it takes one of its places, and more turns than other requests have."""
        return admission.submission(holder)


def _dependencies(dependant: Dependant) -> Iterator[Dependant]:
    """An endpoint with everything that it depends on."""
    yield dependant
    for inner in dependant.dependencies:
        yield from _dependencies(inner)


def _check_parameters(query: bytes, known: set[str]) -> None:
    """Refuse query parameters that the endpoint does not have. A misspelt filter would list too much.

    Raises:
        RequestValidationError: There is such a parameter.
    """
    names = [name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)]
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        expected = ", ".join(sorted(known)) or "none"
        message = f"There is no such query parameter. Known: {expected}."
        errors = [{"type": "unknown_parameter", "loc": ("query", name), "msg": message} for name in unknown]
        raise RequestValidationError(errors)
