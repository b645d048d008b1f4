"""The pages in a real Chromium: accessible at every width, and nothing leaves the host."""

import pytest

from service.console.words import NAVIGATION
from tests.chromium import DESK, PHONE, browser_at, needs_chromium

pytestmark = needs_chromium


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
            if (size, scheme) == (DESK, "light"):
                tab.shoot(f"page-{name.replace(' ', '-')}", whole=name not in ("record", "failed record"))
        assert violations == []
        assert tab.problems == []


REACHED_BY_TAB = """() => {
    const shown = [...document.querySelectorAll(
        "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']")]
        .filter(element => element.checkVisibility() && !element.disabled);
    shown.forEach((element, place) => element.dataset.place = place);
    return shown.length;
}"""
FOCUSED = """() => {
    const element = document.activeElement, style = getComputedStyle(element);
    const isPart = element.type === "date";  // the browser marks the part of the date, and not the whole
    return [element.dataset.place ?? "", isPart || style.outlineStyle !== "none"];
}"""


@pytest.mark.slow
def test_the_tab_key_reaches_everything_and_the_focus_is_seen(pages, address, new_key):
    """At a telephone's width: every link, button and field that is shown."""
    with browser_at(address, viewport=PHONE) as tab:
        tab.sign_in(new_key("admin"))
        for name, path in pages.items():
            tab.open(path)
            left = {str(place) for place in range(tab.page.evaluate(REACHED_BY_TAB))}
            for _ in range(len(left) + 20):  # a date has parts
                tab.page.keyboard.press("Tab")
                place, is_seen = tab.page.evaluate(FOCUSED)
                assert is_seen or not place, (name, place)
                left.discard(place)
            assert left == set(), name


@pytest.mark.parametrize(
    "scopes",
    [
        ("submit",),
        *(pytest.param((scope,), marks=pytest.mark.slow) for scope in ("audit", "read", "approve", "download")),
    ],
)
def test_each_role_goes_where_its_menu_leads(pages, address, new_key, scopes):
    """By clicks, at a telephone's width; every page is there, and accessible."""
    with browser_at(address, viewport=PHONE) as tab:
        tab.sign_in(new_key(*scopes))
        names = [name for _, name, needed in NAVIGATION if not needed or set(needed) & set(scopes)]
        menu = tab.page.get_by_role("navigation")
        assert menu.get_by_role("link").all_inner_texts() == names
        for name in names:
            with tab.page.expect_navigation():
                menu.get_by_role("link", name=name, exact=True).click()
            assert menu.locator("[aria-current=page]").inner_text() == name
            assert tab.violations() == [], name
        assert tab.problems == []


def test_an_error_is_an_accessible_page(address, new_key):
    """What is not there, and what a key may not see."""
    with browser_at(address) as tab:
        tab.sign_in(new_key("read"))
        for path, status in (("nothing", 404), ("health", 403), ("requests?model=nobody", 422)):
            assert tab.page.goto(f"{address}/console/{path}").status == status
            assert tab.violations() == [], path


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
