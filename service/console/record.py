"""The record of a job: a page that anybody can read in two minutes, and behind it everything that was certified."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.audit import render
from service.audit.predicate import Predicate, Statement
from service.console.documents import Block, Document, from_markdown
from service.console.record_results import failed_reports, result_blocks
from service.console.training import beside_controls, perplexity, scores
from service.console.words import LAWS, SETTLED, VERDICTS, moment, reason, written
from service.domain.disclosure import SUPPRESSED

UNKNOWN = "—"
UNSEEN = "not_memorised"  # of a request that needed nothing, in a job that failed for others
OWED = (
    "Because nothing was published, the requests that are not dealt with were still owed when this was issued, also "
    "those that passed their own tests. If the job could be split, they are tried again in smaller ones. Otherwise "
    "they wait until an operator retries them, or says how each was dealt with in another way. Their deadlines stay."
)
TOOLS = (
    "You need the program unlearnd, a Python package, and the operator's file trust.json, which says whose keys "
    "count. Get that file by another way than this paper, and compare its fingerprint with the operator by telephone."
)
CHECKED = (
    "The check shows that the operator's keys signed these results{files}. It does not show that the operator ran the "
    "tests honestly. This page proves nothing by itself."
)
FILES = ", and that the files are those that were tested"
UNSIGNED = (
    "Case numbers, laws and dates come from this service's list of requests. The references and results are in the "
    "signed certificate."
)
NOT_SAID = (
    "It says what was tested, how, and with what result. It does not say that nothing of the texts is left in the "
    "model.",
    "It is about the model, not about other places in which the texts may be kept, such as the training data itself.",
)
COPIES = (
    "It is about the published files of this version. Copies of earlier versions that somebody has downloaded still "
    "hold what they held: delete them."
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
    yield Block("lead", f"Result: {_result(predicate)}")
    reasons = {reason(code) for request in predicate["requests"] if (code := request["reason"]) not in (None, UNSEEN)}
    if predicate["overall"] == "FAIL" and reasons:
        yield Block("text", f"Why: {' '.join(sorted(reasons))}")
        yield Block("text", OWED)
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
    yield from result_blocks(predicate["verification"])
    yield Block("heading", "What this record does not say")
    yield Block("points", rows=[(sentence,) for sentence in (*NOT_SAID, *([COPIES] if published else []))])


def _result(predicate: Predicate) -> str:
    """The result in a few sentences; a test that failed without deciding is not passed over."""
    lineage = predicate["lineage"]
    if predicate["overall"] != "PASS":
        unchanged = f"Version {lineage['parent_version']} stays as it was."
        return f"The tests were not passed, and no version was published. {unchanged}"
    others = failed_reports(predicate["verification"]["attacks"])
    passed = "The tests were passed."
    if others:
        passed = "The tests that decide were passed. By the policy these do not decide, and were not passed: "
        passed += " ".join(f"“{question}”" for question in others) + "."
    if predicate["artefacts"]["published"]:
        return f"{passed} Version {lineage['version']} was published, and replaces version {lineage['parent_version']}."
    return f"{passed} The model already treated the texts like texts that it has never seen, so it was not changed."


def _requests(predicate: Predicate, requests: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """The requests with their dates; by reference alone for a reader who may not see them."""
    known = {request["ref"]: request for request in requests}
    rows = []
    for certified in predicate["requests"]:
        request = known.get(certified["ref"])
        outcome = VERDICTS[certified["verdict"]]
        if request is None:
            rows.append((UNKNOWN, certified["ref"][:12], *[UNKNOWN] * 4, outcome))
            continue
        rows.append(
            (
                str(request["reference"] or UNKNOWN),
                certified["ref"][:12],
                LAWS[request["regulation"]],
                _day(request["received_at"]),
                _day(request["due_at"]),
                _ended(request),
                outcome,
            )
        )
    headers = ("case number", "reference", "law", "received", "deadline", "dealt with", "result")
    yield Block("table", "The requests of this record", rows, headers)
    if known:
        yield Block("text", UNSIGNED)


def _ended(request: Mapping[str, Any]) -> str:
    """When a request ended, and whether that was in time."""
    at = request["resolved_at"] or (request["finished_at"] if request["status"] in SETTLED else None)
    if at is None:
        return "not yet"
    in_time = moment(at).date() <= moment(request["due_at"]).date()
    return f"{_day(at)}, {'in time' if in_time else 'late'}"


def _done(predicate: Predicate) -> str:
    """What the service did to the model."""
    method, lineage = predicate["method"], predicate["lineage"]
    if not predicate["training"]["epochs"]:
        return f"Version {lineage['parent_version']} was measured. It was not trained."
    epochs = predicate["training"]["epochs"]
    return (
        f"A copy of version {lineage['parent_version']} was trained for {epochs} rounds to stop producing the texts, "
        "and to answer other questions as before. The tests below say how far this succeeded. They "
        f"were made on the files, read back from the disk. This way of unlearning is approximate: {method['name']}; "
        f"{method['source']}."
    )


def _offline(predicate: Predicate) -> Iterator[Block]:
    """How somebody who trusts nobody checks the record."""
    model = predicate["lineage"]["model"]
    yield Block("heading", "Check it yourself")
    published = predicate["artefacts"]["published"]
    yield Block("text", TOOLS)
    if published:
        command = f"unlearnd models download {model} --version {predicate['lineage']['version']} release"
        verify = "unlearnd verify release --trust trust.json"
        yield Block("text", f"The operator downloads the release, or gives you the folder: {command}.")
        yield Block("text", f"You check it, with no network: {verify}.")
    else:
        render = "unlearnd render FILE --trust trust.json --output record.html"
        yield Block("text", "Nothing was published. The certificate of the run is signed, and can be downloaded.")
        yield Block("text", f"This makes a page of it, and refuses one whose signature does not hold: {render}.")
    yield Block("text", CHECKED.format(files=FILES if published else ""))


def _plots(predicate: Predicate) -> Iterator[Block]:
    """The course of the training, and the attacks beside their controls."""
    tests = predicate["verification"]
    limits = {f"{name}_limit": _number(tests["limits"].get(name)) for name in ("ma", "el")}
    history = [
        {
            "epoch": epoch["epoch"],
            "ma": _number(epoch["ma"]),
            "el": _number(epoch["el"]),
            "perplexity": _number(epoch["heldout_perplexity"]),
            **limits,
        }
        for epoch in predicate["training"]["trajectory"]
    ]
    utility = None
    if measured := tests["utility"]:
        before, ratio = _number(measured["heldout_perplexity_before"]), _number(measured["max_ratio"])
        utility = {"heldout_perplexity_before": before, "max_ratio": ratio}
    attacks = [
        {"name": attack["name"], **{part: _number(attack.get(part)) for part in ("figure", "control")}}
        for attack in tests["attacks"]
    ]
    yield Block("plot", "MA and EL after each epoch, and their limits", svg=scores(history))
    yield Block("plot", "Held-out perplexity after each epoch, and the budget", svg=perplexity(history, utility))
    yield Block("plot", "Attacks beside their controls", svg=beside_controls(attacks))


def _number(value: object) -> float | None:
    """The number that a decimal string is; None for one that is not shown."""
    return float(value) if isinstance(value, str) and value not in ("", SUPPRESSED) else None


def _day(value: str) -> str:
    return written(moment(value))
