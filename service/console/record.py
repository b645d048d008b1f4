"""The record of a job: a page that anybody can read in two minutes, and behind it everything that was certified."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeGuard

from markupsafe import Markup

from service.audit import render
from service.audit.numbers import trimmed
from service.audit.predicate import Attack, Predicate, Statement
from service.console import plots
from service.console.documents import Block, Document, from_markdown
from service.console.words import ATTACKS, LAWS, SETTLED, VERDICTS, reason
from service.domain.disclosure import SUPPRESSED

RESULTS = {
    "PASS": "The tests were passed.",
    "FAIL": "The tests were not passed, and no version was published.",
}
NOT_SAID = (
    "It says what was tested, how, and with what result. It does not say that nothing of the texts is left in the "
    "model.",
    "It is about the published files of this version. Copies of earlier versions that somebody has downloaded still "
    "hold what they held.",
    "It is about the model, not about other places in which the texts may be kept, such as the training data itself.",
)


def record_document(statement: Statement, requests: Sequence[Mapping[str, Any]]) -> Document:
    """The document of a certificate.

    Args:
        statement: What was certified.
        requests: The requests of the job as the API shows them to the reader: what no certificate holds, such as
            dates and case numbers.
    """
    predicate = statement["predicate"]
    details = from_markdown(render.markdown(statement))
    next(details, None)  # the title
    return Document(
        predicate["title"],
        [
            *_summary(predicate, requests),
            *_offline(predicate),
            Block("break", "Everything that was certified"),
            *_plots(predicate),
            *details,
        ],
    )


def _summary(predicate: Predicate, requests: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """Who asked when under which law, what was done, what was tested, the result, and its limits."""
    lineage, published = predicate["lineage"], predicate["artefacts"]["published"]
    result = RESULTS[predicate["overall"]]
    if published:
        result += f" Version {lineage['version']} was published, and supersedes version {lineage['parent_version']}."
    elif predicate["overall"] == "PASS":
        result += " The model already treated the texts like texts that it has never seen, so it was not changed."
    reasons = {reason(request["reason"]) for request in predicate["requests"] if request["reason"]}
    yield Block("lead", f"Result: {result}")
    if predicate["overall"] == "FAIL" and reasons:
        yield Block("text", f"Why: {' '.join(sorted(reasons))}")
    yield Block(
        "facts",
        rows=[
            ("Model", lineage["model"]),
            ("Version before", str(lineage["parent_version"])),
            ("Version after", str(lineage["version"]) if published else "none was published"),
            ("Issued", f"{_day(predicate['issued_at'])}, by {predicate['issuer']}"),
            ("Certificate", predicate["certificate_id"]),
        ],
    )
    yield Block("heading", "Who asked")
    yield from _requests(predicate, requests)
    yield Block("heading", "What was done")
    yield Block("text", _done(predicate))
    yield Block("heading", "What was tested, and with what result")
    yield from _tests(predicate)
    yield Block("heading", "What this record does not say")
    yield Block("points", rows=[(sentence,) for sentence in NOT_SAID])


def _requests(predicate: Predicate, requests: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """The requests with their dates; by reference alone for a reader who may not see them."""
    known = {request["ref"]: request for request in requests}
    rows = []
    for certified in predicate["requests"]:
        request = known.get(certified["ref"])
        outcome = VERDICTS[certified["verdict"]]
        if request is None:
            rows.append((certified["ref"][:12], "", "", "", "", outcome))
            continue
        rows.append(
            (
                str(request["reference"] or certified["ref"][:12]),
                LAWS[request["regulation"]],
                _day(request["received_at"]),
                _day(request["due_at"]),
                _ended(request),
                outcome,
            )
        )
    headers = ("case number or reference", "law", "received", "deadline", "ended", "this request")
    yield Block("table", "The requests of this record", rows, headers)


def _ended(request: Mapping[str, Any]) -> str:
    """When a request ended, and whether that was in time."""
    if request["status"] not in SETTLED or request["finished_at"] is None:
        return "not yet"
    in_time = _moment(request["finished_at"]).date() <= _moment(request["due_at"]).date()
    return f"{_day(request['finished_at'])}, {'in time' if in_time else 'late'}"


def _done(predicate: Predicate) -> str:
    """What the service did to the model."""
    method, lineage = predicate["method"], predicate["lineage"]
    if not predicate["training"]["epochs"]:
        return f"Version {lineage['parent_version']} was measured. It was not trained."
    return (
        f"A copy of version {lineage['parent_version']} was trained for {predicate['training']['epochs']} rounds so "
        f"that it stops producing the texts ({method['name']}, {method['source']}), while it was held near its "
        "answers to other text. The result was measured after it was written to the disk."
    )


def _tests(predicate: Predicate) -> Iterator[Block]:
    """The tests in questions that a layman would ask, with their results."""
    tests = predicate["verification"]
    limits, before, after = tests["limits"], tests["before"], tests["after"]
    rows: list[tuple[str, ...]] = []
    for name in ("el", "ma"):
        if before and limits:
            now = _score(after.get(name) if after else None)
            rows.append(
                (ATTACKS[name], _score(before.get(name)), now, _score(limits.get(name)), _passed(predicate, name))
            )
    for attack in tests["attacks"]:
        if attack["name"] in ATTACKS and attack["status"] == "RUN" and attack["name"] not in ("el", "ma"):
            figures = (_score(attack.get("figure")), _score(attack.get("control")))
            rows.append((ATTACKS[attack["name"]], "", *figures, _answer(attack)))
    headers = ("question", "before", "after", "on unseen text", "answer")
    yield Block("table", "The tests", rows, headers)
    left_out = [attack["name"].replace("_", " ") for attack in tests["attacks"] if attack["status"] != "RUN"]
    if left_out:
        yield Block("text", f"Not tried: {', '.join(left_out)}.")
    if utility := tests["utility"]:
        ratio, most = f"{Decimal(utility['heldout_ratio']):.3f}", trimmed(utility["max_ratio"])
        kept = "kept" if utility["within_budget"] else "not kept"
        yield Block(
            "text",
            f"Was the model damaged? Its surprise at other text (perplexity) is {ratio} times what it was; the limit "
            f"is {most}, and it was {kept}.",
        )
    if SUPPRESSED in (before or {}).values():
        yield Block("text", "Values over few people's texts are not shown, because they would be about a person.")


def _passed(predicate: Predicate, name: str) -> str:
    """Whether a mean of the criterion is at or under its limit."""
    tests = predicate["verification"]
    after: Mapping[str, Any] = tests["after"] or {}
    mean, limit = after.get(name), tests["limits"].get(name)
    passed = predicate["overall"] == "PASS"
    if _is_number(mean) and _is_number(limit):
        passed = Decimal(mean) <= Decimal(limit)
    elif not passed:
        return "not shown"
    return "no more than unseen text" if passed else "more than unseen text"


def _answer(attack: Attack) -> str:
    """The result of an attack in words."""
    passed = attack.get("passed")
    if passed is None:
        return "tried"
    if passed:
        return "no"
    return "yes" if attack.get("effect") == "block" else "yes (reported; it blocks nothing by this policy)"


def _score(value: object) -> str:
    """A score, or why it is not shown."""
    if value in (None, ""):
        return "—"
    return "not shown" if value == SUPPRESSED else trimmed(str(value))


def _offline(predicate: Predicate) -> Iterator[Block]:
    """How somebody who trusts nobody checks the record."""
    model = predicate["lineage"]["model"]
    yield Block("heading", "Check it yourself")
    if predicate["artefacts"]["published"]:
        command = f"unlearnd models download {model} --version {predicate['lineage']['version']} release"
        yield Block("text", f"Download the release: {command}. Then, with no network: unlearnd verify release.")
    else:
        yield Block("text", "Nothing was published. The certificate of the run is signed, and the log has its digest.")
    yield Block("text", "This page was made from the signed certificate and proves nothing by itself.")


def _plots(predicate: Predicate) -> Iterator[Block]:
    """The course of the training, and the attacks beside their controls."""
    epochs, tests = predicate["training"]["trajectory"], predicate["verification"]
    lines = []
    for name in ("ma", "el"):
        values = [(epoch["epoch"], float(epoch[name])) for epoch in epochs if _is_number(epoch[name])]
        limit = tests["limits"].get(name)
        lines.append(plots.Line(name.upper(), values, float(limit) if _is_number(limit) else None))
    yield _plot("MA and EL after each epoch, and their limits", plots.lines("MA and EL", lines, x_name="epoch"))
    values = [(epoch["epoch"], float(epoch["heldout_perplexity"])) for epoch in epochs]
    utility = tests["utility"]
    budget = float(utility["heldout_perplexity_before"]) * float(utility["max_ratio"]) if utility else None
    shown = plots.lines("perplexity", [plots.Line("perplexity", values, budget)], x_name="epoch", from_zero=False)
    yield _plot("Held-out perplexity after each epoch, and the budget", shown)
    rows = [
        (attack["name"].replace("_", " "), float(figure), float(control))
        for attack in tests["attacks"]
        if _is_number(figure := attack.get("figure")) and _is_number(control := attack.get("control"))
        if float(figure) >= 0
    ]
    yield _plot("Attacks beside their controls", plots.bars("attacks", rows, name="the texts", other="unseen texts"))


def _plot(title: str, svg: Markup) -> Block:
    """A plot under its title, or nothing."""
    return Block("plot", title, svg=svg)


def _is_number(value: object) -> TypeGuard[str]:
    """Whether a decimal string is a number, and not the word for one that is not shown."""
    return isinstance(value, str) and value not in ("", SUPPRESSED)


def _moment(value: str) -> datetime:
    return datetime.fromisoformat(value).astimezone(UTC)


def _day(value: str) -> str:
    moment = _moment(value)
    return f"{moment.day} {moment:%B %Y}"
