"""The API's own page: everything comes from this machine."""

import re

import pytest
from fastapi.testclient import TestClient

from service.main import create_app


def test_the_page_loads_nothing_from_elsewhere(api):
    """Its scripts and styles are served here, and the policy allows no others."""
    page = api.get("/docs")
    assert "unsafe" not in page.headers["content-security-policy"]
    files = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert {path.split("/")[1] for path in files} == {"docs", "openapi.json"}
    answers = [api.get(path) for path in files]
    assert {answer.status_code for answer in answers} == {200}
    assert any(b"SwaggerUIBundle" in answer.content for answer in answers)
    assert api.get("/docs/nothing.js").status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js"])
def test_there_may_be_no_page(services, path):
    """A setting leaves it out."""
    with TestClient(create_app(services, docs=False)) as client:
        assert client.get(path).status_code == 404
