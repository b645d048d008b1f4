"""A real Chromium from the system's packages, which no request to another host leaves."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SCREENSHOTS = os.environ.get("UNLEARND_SCREENSHOTS", "")  # a folder: the pictures of docs/assets/console
PHONE, DESK = {"width": 390, "height": 800}, {"width": 1280, "height": 900}


class Tab:
    """A page of the browser, with what went wrong on it."""

    def __init__(self, page, url: str) -> None:
        """Watch a page of the service at `url`."""
        self.page, self.url = page, url
        self.problems: list[str] = []
        page.on("console", lambda said: self._note(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self._note(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith((url, "data:")) else self._note(asked.url))

    def _note(self, problem: str) -> None:
        self.problems.append(f"{self.page.url}: {problem}")

    def open(self, path: str) -> None:
        """Open a page of the service, and wait until it rests."""
        self.page.goto(self.url + path)
        self.page.wait_for_load_state("networkidle")

    def sign_in(self, key: str) -> None:
        """Sign in by the form, with the keyboard alone."""
        self.open("/console")
        self.page.keyboard.press("Tab")  # the link that skips to the content
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Tab")
        self.page.keyboard.type(key)
        self.page.keyboard.press("Enter")
        self.page.get_by_role("button", name="Sign out", exact=True).wait_for()

    def shoot(self, name: str, *, whole: bool = True) -> None:
        """Take a picture for the documentation, if it is asked for: of the page, or of what the screen shows."""
        if SCREENSHOTS:
            self.page.wait_for_load_state("networkidle")
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=whole)

    def violations(self) -> list[str]:
        """What axe finds wrong with the page."""
        script = (resources.files("axe_playwright_python") / "axe.min.js").read_text()
        self.page.evaluate(script)
        options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
        answer = self.page.evaluate("options => axe.run(document, options)", options)
        return [
            f"{self.page.url}: {rule['id']}: {[node['html'][:200] for node in rule['nodes']]}"
            for rule in answer["violations"]
        ]

    def overflows(self) -> bool:
        """Whether the page is wider than the screen."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


@contextmanager
def browser_at(url: str, **options: object) -> Iterator[Tab]:
    """A tab of a browser with an empty profile."""
    from playwright.sync_api import sync_playwright  # most tests do without it

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            context = chromium.new_context(**{"viewport": DESK, **options})
            yield Tab(context.new_page(), url)
        finally:
            chromium.close()
