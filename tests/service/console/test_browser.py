"""The pages in a real Chromium: accessible at every width, and nothing leaves the host."""

import pytest

from tests.chromium import DESK, PHONE, browser_at, needs_chromium
from tests.service.served import served

pytestmark = needs_chromium


@pytest.fixture
def address(services):
    """The application on a real socket."""
    with served(services, request_seconds=30, max_connections=200) as (host, port):
        yield f"http://{host}:{port}"


SCREENS = [
    (DESK, "light"),
    pytest.param(DESK, "dark", marks=pytest.mark.slow),
    pytest.param(PHONE, "light", marks=pytest.mark.slow),
]


def test_axe_sees_what_is_wrong(address):
    """The counterpart of the next test."""
    with browser_at(address) as tab:
        tab.open("/console/sign-in")
        tab.page.evaluate("document.querySelector('label').remove()")
        assert any("label" in violation for violation in tab.violations())


@pytest.mark.parametrize(("size", "scheme"), SCREENS)
def test_every_page_is_accessible_and_loads_nothing_from_elsewhere(pages, address, new_key, size, scheme):
    """axe finds no violation, no page is wider than the screen, and the browser reports no refused script or style."""
    with browser_at(address, viewport=size, color_scheme=scheme) as tab:
        tab.open("/console")
        violations = tab.violations()
        tab.sign_in(new_key("admin"))
        for name, path in pages.items():
            tab.open(path)
            violations += tab.violations()
            assert not tab.overflows(), name
        assert violations == []
        assert tab.problems == []


def test_pages_work_without_scripts(pages, address, new_key):
    """All but what changes by itself."""
    with browser_at(address, java_script_enabled=False) as tab:
        tab.sign_in(new_key("admin"))
        tab.open(pages["today"])
        tab.page.get_by_role("link", name="Examine the installation").click()
        assert tab.page.get_by_role("heading", name="Health").is_visible()
        tab.open(pages["waiting"])
        tab.page.get_by_role("button", name="Cancel the request").click()
        assert tab.page.locator(".badge").first.inner_text() == "Cancelled"


def test_the_page_of_the_api_works(address):
    """Swagger UI from this machine, under a policy that allows no other."""
    with browser_at(address) as tab:
        tab.open("/docs")
        tab.page.get_by_text("Deletion requests in, certified model versions out.").wait_for()
        assert tab.problems == []
