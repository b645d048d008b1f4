"""`/docs`: the API's own page. Swagger UI comes from a package, so no request leaves the machine."""

from importlib import resources

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from service.domain.errors import NotFound

router = APIRouter(include_in_schema=False)
root_router = APIRouter(include_in_schema=False)
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>unlearnd: the API</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<script src="/docs/swagger-ui-bundle.js" defer></script><script src="/docs/start.js" defer></script></head>
<body><main id="swagger-ui"><h1>unlearnd: the API</h1>
<noscript>This page needs scripts. The description itself is <a href="/openapi.json">openapi.json</a>.</noscript>
</main></body></html>
"""
START = """window.addEventListener("load", () => SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, persistAuthorization: false,
}));
"""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
}
FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


@root_router.get("/")
async def root() -> dict[str, str]:
    """What this is, where there is no console."""
    return {"service": "unlearnd", "openapi": "/openapi.json", "ready": "/readyz"}


@router.get("/docs")
async def page() -> Response:
    """The page."""
    return HTMLResponse(PAGE, headers=HEADERS)


@router.get("/docs/{name}")
def file(name: str) -> Response:
    """A script or style of the page."""
    if name == "start.js":
        return Response(START, media_type="text/javascript", headers=HEADERS)
    if name not in FILES:
        raise NotFound("There is no such file.")
    content = (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
    return Response(content, media_type=FILES[name], headers={**HEADERS, "Cache-Control": "max-age=3600"})
