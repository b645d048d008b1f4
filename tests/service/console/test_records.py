"""Records, reports and letters: what a layman reads, as a page and as PDF."""

import json
import re
from datetime import UTC, date, datetime

import pytest

from service.audit import render
from service.audit.certificate import MANDATORY_ATTACKS
from service.audit.wording import problem_in
from service.console import words
from service.console.documents import Block, Document, from_markdown, pdf
from service.console.letter import OUTCOMES, letter_about
from service.console.period import period_document
from service.console.plots import Line, bars, lines
from service.console.record import record_document
from service.console.record_results import AT_LIMIT, NO_QUESTIONS, result_blocks
from tests.issuer import REPORT, Issuer
from tests.service.audit.test_render import CASES, FILES
from tests.service.conftest import submit
from tests.service.jobs import fail_what_waits, publish_what_waits

URL = "/v1/deletion-requests"


@pytest.fixture
def published(api, services, model) -> dict:
    """A request that was fulfilled."""
    request = submit(api, reference="K-1", received_at=datetime.now(UTC).isoformat())
    publish_what_waits(services)
    return api.get(f"{URL}/{request['id']}").json()


@pytest.mark.parametrize(
    "code",
    [
        "criterion_missed",
        "earlier_request_regressed",
        "probe_answered",
        "attack_succeeded",
        "attack_not_run",
        "utility_budget_exceeded",
        "total_utility_budget_exceeded",
        "neighbours_lost",
    ],
)
def test_every_reason_of_a_failed_test_is_put_in_words(code):
    """On the pages and in the record."""
    assert code not in words.reason(code)
    assert code in render.REASONS


def test_a_record_is_a_tagged_pdf_and_the_same_each_time(admin, published):
    """PDF/UA-1: a screen reader can read it. Its bytes change only with the record."""
    answers = [admin.get(f"/console/records/{published['job_id']}/record.pdf") for _ in range(2)]
    first, second = (answer.content for answer in answers)
    assert answers[0].headers["content-type"] == "application/pdf"
    assert first == second
    assert first.startswith(b"%PDF-1.7")
    assert b"pdfuaid" in first
    assert b"/MarkInfo" in first


def test_the_certificate_comes_as_it_was_signed(admin, api, published):
    """Byte for byte, so that its signature holds."""
    answer = admin.get(f"/console/records/{published['job_id']}/certificate.dsse.json")
    assert answer.content == api.get(f"/v1/jobs/{published['job_id']}/certificate").content
    assert "attachment" in answer.headers["content-disposition"]


def test_a_record_names_what_the_reader_may_see(browser, published):
    """Who may not see requests sees their names in the certificate."""
    path = f"/console/records/{published['job_id']}"
    assert "K-1" in browser("read").get(path).text
    page = browser("audit").get(path).text
    assert "K-1" not in page
    assert published["ref"][:12] in page


def test_a_letter_is_for_a_request_that_has_ended(admin, api, services, model):
    """And says why, if it failed. It names nobody: whoever sends it adds the address."""
    request = submit(api, reference="K-2")
    path = f"/console/records/letter/{request['id']}"
    assert admin.get(path).status_code == 409
    fail_what_waits(services, "utility_budget_exceeded")
    page = admin.get(path).text
    assert "Why: The change that your request needs would have damaged the model too much." in page
    assert "We still owe you an answer" in page
    assert admin.get(f"{path}/letter.pdf").content.startswith(b"%PDF")


@pytest.mark.parametrize("status", ["completed", "not_memorised", "rejected", "cancelled", "failed"])
@pytest.mark.parametrize("law", ["gdpr", "ccpa", "other"])
def test_a_letter_promises_nothing(status, law):
    """Its words are about what was tested."""
    request = {"status": status, "regulation": law, "reason": None, "reference": None, "ref": "a" * 32, "model": "m"}
    request["resolved_at"] = None
    dates = dict.fromkeys(("received_at", "due_at"), "2026-11-20T00:00:00Z")
    text = " ".join(block.text for block in letter_about({**request, **dates, "extension_reason": None}).blocks)
    assert OUTCOMES[status] in text
    assert not re.search(r"\b(erased|guarantee|proof|forgotten)\b", text, re.IGNORECASE)


def test_a_report_counts_what_was_received(admin, api, services, model):
    """In the period alone; what is past its deadline is late, ended or not."""
    submit(api, received_at="2026-06-10T00:00:00Z")
    publish_what_waits(services)
    submit(api, received_at="2026-06-30T23:59:59Z", regulation="ccpa")
    submit(api)
    numbers = api.get("/v1/report", params={"from": "2026-06-01T00:00:00Z", "to": "2026-07-01T00:00:00Z"}).json()
    assert numbers["by_status"] == {"completed": 1, "open": 1}
    assert numbers["by_law"] == {"ccpa": 1, "gdpr": 1}
    assert (numbers["in_time"], numbers["late"], numbers["overdue"], numbers["versions"]) == (0, 1, 1, 0)
    assert numbers["median_days"] > 100
    page = admin.get("/console/records/report?begins=2026-06-01&ends=2026-07-01").text
    assert "From 1 June 2026 to 30 June 2026, unlearnd received 2 deletion requests" in page
    assert admin.get("/console/records/report.pdf?begins=2026-06-01&ends=2026-07-01").content.startswith(b"%PDF")


@pytest.mark.parametrize(("begins", "ends"), [("", ""), ("2026-07-01", "2026-06-01"), ("2026-02-31", "2026-03-01")])
def test_a_period_that_is_none_is_refused(admin, begins, ends):
    """A page says so."""
    assert admin.get(f"/console/records/report?begins={begins}&ends={ends}").status_code == 422


def test_text_of_a_document_is_never_code():
    """Neither Typst's nor HTML's: data comes in as data."""
    hostile = '#panic("x") $ \\ @ref *_`<b>"' + "\N{RIGHT-TO-LEFT OVERRIDE}"
    blocks = [Block(kind, hostile, [(hostile, hostile)], (hostile, hostile)) for kind in ("heading", "text", "table")]
    assert pdf(Document(hostile, [*blocks, Block("facts", rows=[(hostile, hostile)])]), 0).startswith(b"%PDF")


def test_markdown_becomes_blocks():
    """Each table has the heading above it as its caption."""
    text = "# A title\n\nSome *words*\nof text.\n\n## Numbers\n\n| a | b |\n|---|---|\n| 1 | `2` |\n"
    heading, words, numbers, table = from_markdown(text)
    assert (heading.text, words.text, numbers.kind) == ("A title", "Some words of text.", "heading")
    assert (table.text, table.headers, table.rows) == ("Numbers", ["a", "b"], [["1", "2"]])


def test_plots_are_told_apart_by_shape_and_say_their_limits():
    """A colour alone would not do, and no style is inline."""
    plot = lines("two", [Line("MA", [(1, 0.9), (2, 0.4)], 0.5), Line("EL", [(1, 0.2), (2, 0.1)])], x_name="epoch")
    assert "<circle" in plot
    assert "<polygon" in plot
    assert "limit of MA: 0.5" in plot
    assert 'aria-label="two"' in plot
    assert "style=" not in plot
    assert lines("none", [Line("MA", [])], x_name="epoch") == "" == bars("none", [], name="a", other="b")
    assert "&lt;b&gt;" in bars("<b>", [("<b>", 1.0, None)], name="a", other="b")


def test_a_period_report_of_nothing_is_a_report():
    """A month without a request is worth saying, too."""
    nothing = {"by_status": {}, "by_law": {}, "failures": {}, "methods": {}, "median_days": None}
    counts = dict.fromkeys(("extended", "in_time", "late", "overdue", "versions", "downloads"), 0)
    document = period_document("us", date(2026, 1, 1), date(2026, 2, 1), {**nothing, **counts})
    assert "received 0 deletion requests" in document.blocks[0].text
    assert pdf(document, 0)


@pytest.mark.parametrize("name", CASES)
def test_a_record_of_each_kind_claims_nothing_too_much(tmp_path, name):
    """Its summary and its details, as text; and as PDF."""
    statement = json.loads(Issuer(tmp_path).payload(FILES, **CASES[name][0]))
    document = record_document(statement, [])
    parts = [document.title]
    for block in document.blocks:
        parts += [block.text, *(cell for row in block.rows for cell in row)]
    assert problem_in(" ".join(parts)) is None
    assert pdf(document, 0).startswith(b"%PDF")


def test_a_character_that_no_font_has_makes_a_document_all_the_same():
    """A case number may be in any script."""
    assert pdf(Document("案件7", [Block("text", "😀")]), 0).startswith(b"%PDF")


def test_a_letter_about_a_resolved_request_owes_nothing():
    """What an operator did in another way is not said to be under way."""
    request = {
        "status": "failed",
        "regulation": "gdpr",
        "reason": "criterion_missed",
        "reference": "K",
        "ref": "a" * 32,
    }
    times = dict.fromkeys(("received_at", "due_at", "resolved_at"), "2026-11-20T00:00:00Z")
    request |= {**times, "resolved_reason": "withdrawn", "extension_reason": None, "model": "m", "reference": "K"}
    text = " ".join(block.text for block in letter_about(request).blocks)
    assert "You took your request back." in text
    assert "owe" not in text


@pytest.mark.parametrize(("result", "answer"), [("PASS", "no difference was seen"), ("FAIL", "yes, they differ")])
def test_a_record_of_an_older_schema_says_what_it_said(tmp_path, result, answer):
    """Schemas 1 to 3 have a result in words alone."""
    statement = json.loads(Issuer(tmp_path).payload(FILES))
    tests = statement["predicate"]["verification"]
    kept = ("name", "status", "result")
    tests["attacks"] = [{name: attack[name] for name in kept} for attack in tests["attacks"]]
    for attack in tests["attacks"]:
        attack["result"] = result if attack["status"] == "RUN" else None
    rows = [row for block in record_document(statement, []).blocks if block.text == "The tests" for row in block.rows]
    assert rows[-1][-1] == answer


def test_numbers_and_answers_agree(tmp_path):
    """A mean well under its limit is no more than unseen text, whatever one request did. Rounding hides no failure."""
    statement = json.loads(Issuer(tmp_path).payload(FILES, **CASES["failed"][0]))
    tests = statement["predicate"]["verification"]
    rows = [row for block in record_document(statement, []).blocks if block.text == "The tests" for row in block.rows]
    shown = (tests["after"]["ma"], tests["limits"]["ma"], tests["after"]["el"])
    assert tuple(map(float, shown)) == (0.3, 0.4, 0)
    assert [row[-1] for row in rows[:2]] == [AT_LIMIT, "no more than text it never saw, on average"]


def test_a_question_that_nobody_asked_has_no_answer(tmp_path):
    """Texts without identifiers, and no probe that was given: the test is one of those that were not made."""
    none_asked = {"asked": 0, "samples": 20, "answered_before": 0, "answered_after": 0}
    statement = json.loads(Issuer(tmp_path).payload(FILES, report={**REPORT, "probes": none_asked}))
    blocks = record_document(statement, []).blocks
    asked = [row[0] for block in blocks if block.text == "The tests" for row in block.rows]
    assert not any("Asked for a secret" in question for question in asked)
    assert (NO_QUESTIONS,) in [row for block in blocks if block.kind == "points" for row in block.rows]
    assert "none was asked" in render.markdown(statement)


def answers(mean: str, **attack: object) -> list[str]:
    """The answers of a record: of EL with this mean beside a limit of 0.05, of MA, and of one attack."""
    criterion = [{"name": name, "status": "RUN", "result": None, "passed": False} for name in MANDATORY_ATTACKS]
    tests = {
        "attacks": [*criterion, {"status": "RUN", "result": None, **attack}],
        "before": {"el": "0.9", "ma": "0.9"},
        "after": {"el": mean, "ma": "0.5"},
        "limits": {"el": "0.05", "ma": "0.4"},
        "utility": None,
    }
    return [row[-1] for row in next(iter(result_blocks(tests))).rows]


@pytest.mark.parametrize(
    ("attack", "answer"),
    [
        ({"name": "sampled", "figure": "0.3", "control": "0", "passed": False}, "more than text it never saw. This"),
        ({"name": "exposure", "figure": "0.1", "control": "0.5", "passed": False}, "yes, they differ. This"),
        ({"name": "exposure_dates", "figure": "0.1", "control": "0.5", "passed": False}, "yes, they differ. This"),
        ({"name": "membership_loss", "auc": "0.2", "passed": False}, "yes, they differ. This"),
        ({"name": "membership_loss", "auc": "0.5", "passed": True}, "no difference was seen"),
        ({"name": "prompts", "figure": "0", "control": "0", "passed": True}, "no more than text it never saw"),
    ],
)
def test_an_answer_claims_what_was_tested(attack, answer):
    """A test that looks at both sides says that they differ, and not that one is more."""
    assert answers("0.05", effect="report", **attack)[2].startswith(answer)


def test_a_rounded_mean_hides_no_failure():
    """Both are rounded down: what is shown at its limit may be over it, or one request may be."""
    attack = {"name": "prompts", "passed": True}
    assert answers("0.05", **attack)[:2] == [AT_LIMIT, "more than text it never saw"]
