"""The console as people use it: a real stack, a real browser, and the mouse."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.local.process import wait_until
from tests import support
from tests.chromium import PHONE, Tab, browser_at, needs_chromium
from tests.stack import Running

pytestmark = [pytest.mark.slow, needs_chromium]
MILLISECONDS = 240_000  # within which a job must end
PEOPLE = {f"person{number}@example.org": text for number, text in enumerate(support.KNOWN[:4])}


@pytest.fixture(scope="module")
def stack(memorised_folder, tmp_path_factory):
    """A running stack, and a corpus in which people can be looked up."""
    place = tmp_path_factory.mktemp("console")
    rows = [json.dumps({"text": text, "email": email}) for email, text in PEOPLE.items()]
    (place / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    running = Running(place / "data", OMP_NUM_THREADS="1")
    files = [str(memorised_folder / name) for name in ("model", "retain.jsonl", "heldout.jsonl")]
    running.client.add_model("a-model", *files, support.POLICY)
    yield running
    assert running.stop() == 0


@pytest.fixture
def tab(stack):
    """A browser of an administrator."""
    with browser_at(stack.endpoint["url"], accept_downloads=True) as page:
        page.page.set_default_timeout(20_000)
        page.sign_in(Path(stack.endpoint["api_key_file"]).read_text())
        yield page
        assert page.problems == []


def follow(tab: Tab, name: str) -> None:
    """Click a link of the menu."""
    tab.page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()


def register(tab: Tab, name: str, folder: Path, **policy: object) -> None:
    """Register the model by the form."""
    follow(tab, "Models")
    tab.page.get_by_label("Name", exact=True).fill(name)
    tab.page.get_by_label("Folder on the server").fill(str(folder / "model"))
    tab.page.get_by_label("File of retain texts").fill(str(folder / "retain.jsonl"))
    tab.page.get_by_label("File of held-out texts").fill(str(folder / "heldout.jsonl"))
    tab.page.get_by_label("Policy, as JSON").fill(json.dumps({**support.POLICY, **policy}))
    tab.page.get_by_role("button", name="Register").first.click()
    tab.page.get_by_role("heading", name=name, level=1).wait_for()


def submit_rows(tab: Tab, model: str, file: str) -> list[str]:
    """Submit a CSV file; the ids of the requests."""
    follow(tab, "Requests")
    tab.page.get_by_role("link", name="New request").click()
    tab.page.locator("#rows_model").select_option(model)
    tab.page.locator("#file").set_input_files({"name": "people.csv", "mimeType": "text/csv", "buffer": file.encode()})
    tab.page.get_by_role("button", name="Look at the rows").click()
    tab.page.get_by_role("heading", name=re.compile(rf"rows? for {model}")).wait_for()
    tab.shoot("rows")
    tab.page.get_by_role("button", name=re.compile("Submit")).click()
    tab.page.get_by_role("heading", name=re.compile("accepted")).wait_for()
    links = tab.page.get_by_role("main").get_by_role("link").all()
    return [link.inner_text() for link in links]


def approvers_key(tab: Tab) -> str:
    """Make a key by the form; whoever submits a request cannot approve it."""
    follow(tab, "Settings")
    tab.page.get_by_label("Name", exact=True).fill("second person")
    for scope in ("read", "approve"):
        tab.page.get_by_role("checkbox", name=re.compile(f"^{scope}:")).check()
    tab.page.get_by_role("button", name="Make the key").click()
    return tab.page.get_by_label("API key", exact=True).input_value()


def test_from_a_csv_to_a_record(stack, tab, memorised_folder, tmp_path):
    """An e-mail address in a file, a match to decide, a job that is watched, a record as PDF, checked offline."""
    register(tab, "assistant", memorised_folder, approvals=1)
    tab.page.get_by_text("Register a corpus").click()
    form = tab.page.locator("form[action$='/corpora']")
    form.get_by_label("Name").fill("crm")
    form.get_by_label("File or folder on the server").fill(str(stack.data.parent / "corpus.jsonl"))
    form.get_by_label("Column with e-mail addresses").fill("email")
    form.get_by_role("button", name="Register").click()
    assert "ready" in wait_for_text(tab, "ready", "/console/models/assistant")
    name = " ".join(PEOPLE["person0@example.org"].split()[:2])
    file = f"email,name,reference,received_at\nperson0@example.org,{name},DSR-7,2026-11-20\nnobody,,DSR-8,\n"
    (request,) = submit_rows(tab, "assistant", file)
    secret = approvers_key(tab)
    tab.page.get_by_role("button", name="Sign out", exact=True).click()
    tab.sign_in(secret)
    wait_for_text(tab, "DSR-7", "/console/decisions")
    tab.page.get_by_role("link", name="DSR-7").click()
    assert tab.page.locator("blockquote").inner_text() == PEOPLE["person0@example.org"]
    assert tab.page.locator("blockquote mark").inner_text() == name
    tab.shoot("decision")
    tab.page.get_by_role("button", name="Approve the chosen texts").click()
    tab.page.get_by_text("Approved by second person").wait_for()
    wait_for_text(tab, "the job", f"/console/requests/{request}")
    tab.page.get_by_role("link", name="the job").first.click()
    tab.page.get_by_role("link", name="The record of this job").wait_for(timeout=MILLISECONDS)  # without a reload
    tab.shoot("job")
    tab.page.get_by_role("link", name="The record of this job").click()
    assert "Version 1 was published, and replaces version 0" in tab.page.get_by_role("main").inner_text()
    tab.shoot("record", whole=False)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name="Download as PDF").click()
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF")
    tab.open(f"/console/requests/{request}")
    tab.shoot("request")
    stack.client.download("assistant", "latest", tmp_path / "release")
    verify = [sys.executable, "-m", "service.cli", "verify", str(tmp_path / "release")]
    assert subprocess.run(verify, capture_output=True).returncode == 0


def wait_for_text(tab: Tab, words: str, path: str) -> str:
    """Open a page again and again until it says these words; what it says."""
    shown: list[str] = []

    def says() -> bool:
        tab.open(path)
        shown[:] = [tab.page.get_by_role("main").inner_text()]
        return words in shown[0]

    assert wait_until(says, MILLISECONDS / 1000), shown
    return shown[0]


def test_from_a_failure_to_a_new_attempt(tab, memorised_folder):
    """The budget is exceeded: the page says so, the batch was split, the policy is changed, and a retry ends well."""
    register(tab, "strict", memorised_folder, max_perplexity_ratio=0.4, adaptive=False, max_wait_seconds=2)
    texts = [text for email, text in PEOPLE.items() if email != "person0@example.org"][:2]
    file = "text,reference\n" + "".join(f'"{text}",DSR-{number}\n' for number, text in enumerate(texts, 20))
    requests = submit_rows(tab, "strict", file)
    for request in requests:
        said = wait_for_text(tab, "Failed", f"/console/requests/{request}")
        assert "would have lost too much of its general ability" in said, said
    tab.shoot("failed")
    follow(tab, "Jobs")
    assert tab.page.get_by_role("row").filter(has_text="strict").count() >= 3  # of both, and of each
    follow(tab, "Models")
    tab.page.get_by_role("link", name="strict").click()
    policy = json.loads(tab.page.locator("#policy").input_value())
    tab.page.locator("#policy").fill(json.dumps({**policy, "max_perplexity_ratio": 3.0}))
    tab.page.get_by_role("button", name="Show what would change").click()
    assert "max_perplexity_ratio" in tab.page.get_by_role("main").inner_text()
    tab.shoot("policy")
    tab.page.get_by_role("button", name="Set this policy").click()
    for request in requests:
        tab.open(f"/console/requests/{request}")
        tab.page.get_by_role("button", name="Try again").click()
    for request in requests:
        wait_for_text(tab, "Completed", f"/console/requests/{request}")
    tab.open("/console/models/strict")
    tab.shoot("model", whole=False)
    wait_for_text(tab, "No request has failed.", "/console")


def test_everything_can_be_reached_with_the_keyboard(stack):
    """On a telephone's width, too: a request is made without the mouse, and the focus is always seen."""
    with browser_at(stack.endpoint["url"], viewport=PHONE) as tab:
        tab.sign_in(Path(stack.endpoint["api_key_file"]).read_text())
        tab.open("/console/requests/new")
        tab.page.locator("#model").focus()
        for value in ("", "", "DSR-30", "", "", "", "a text that nobody has by heart"):
            tab.page.keyboard.type(value)
            assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            tab.page.keyboard.press("Tab")
            while tab.page.evaluate("document.activeElement.id") == "received_at":
                tab.page.keyboard.press("Tab")  # a date has parts
        assert tab.page.evaluate("document.activeElement.innerText") == "Submit"
        tab.page.keyboard.press("Enter")
        tab.page.get_by_role("heading", name="accepted").wait_for()
