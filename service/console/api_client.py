"""Calls of the API in this process, for whoever is signed in: with that key's scopes and limits, and no network."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import httpx
from fastapi import Depends, Request, Response
from starlette.types import Receive, Scope, Send

from service.api.deps import SIGNED_IN
from service.console.pages import see
from service.console.sign_in import Visitor
from service.domain.errors import ServiceError

BASE_URL = "http://console"  # a name that is never looked up


class Refused(ServiceError):
    """The API refused a call.

    Attributes:
        problem: Its problem document (RFC 9457).
    """

    def __init__(self, problem: Mapping[str, Any]) -> None:
        """Take the problem document."""
        super().__init__(str(problem["detail"]), code=str(problem["code"]))
        self.status, self.title, self.problem = int(problem["status"]), str(problem["title"]), problem

    @property
    def messages(self) -> list[str]:
        """What is wrong, a sentence for each field."""
        errors = self.problem.get("errors") or []
        return [f"{error['field']}: {error['message']}" for error in errors] or [self.detail]


class Api:
    """The API, as the visitor may use it."""

    def __init__(self, request: Request, visitor: Visitor) -> None:
        """Call it within the handling of this request."""
        outer, app = request.scope, request.app

        async def signed_in(scope: Scope, receive: Receive, send: Send) -> None:
            inner = {**scope, "client": outer["client"], "server": outer["server"], SIGNED_IN: visitor.caller}
            await app(inner, receive, send)

        transport = httpx.ASGITransport(signed_in)
        self._client = httpx.AsyncClient(transport=transport, base_url=BASE_URL, trust_env=False)

    async def get(self, path: str, **parameters: object) -> Any:
        """The answer to a GET; parameters that are None or empty are left out."""
        given = {name: str(value) for name, value in parameters.items() if value not in (None, "")}
        return (await self.call("GET", path, params=given)).json()

    async def text(self, path: str, **parameters: str) -> str:
        """The text that answers a GET."""
        return (await self.call("GET", path, params=parameters)).text

    async def post(self, path: str, body: object = None, **headers: str) -> Any:
        """The answer to a POST."""
        return (await self.call("POST", path, json=body, headers=headers)).json()

    async def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Any answer that is no error.

        Raises:
            Refused: The API refused.
        """
        answer = await self._client.request(method, path, **arguments)
        if answer.is_error:
            raise Refused(answer.json())
        return answer


async def _api(request: Request, visitor: Visitor) -> Api:
    return Api(request, visitor)


ApiDep = Annotated[Api, Depends(_api)]


async def attempt(
    call: Awaitable[object], again: Callable[[list[str], int], Awaitable[Response]], then: str
) -> Response:
    """Do what a form asks for, and go on to `then`; or show the page `again`, with what was wrong and the status."""
    try:
        await call
    except Refused as refused:
        return await again(refused.messages, refused.status)
    return see(then)
