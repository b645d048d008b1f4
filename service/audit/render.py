"""Certificates for people: Markdown, and an HTML page with a chart of the training, made from the statement alone."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Literal

from service.audit.attack_problems import NONE
from service.audit.attack_rows import ATTACK_HEADERS, COPY_HEADERS, attack_rows, copy_rows
from service.audit.chart import training_chart
from service.audit.numbers import in_words, trimmed
from service.audit.predicate import (
    CertifiedMeans,
    CertifiedRequest,
    CertifiedUtility,
    ForgetSet,
    Limits,
    Predicate,
    Quantised,
    Statement,
)
from service.domain.disclosure import SUPPRESSED

SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>&~-])")
VERDICTS = {
    "PASS": "passed its tests",
    "FAIL": "did not pass its tests",
    "NOT_PUBLISHED": "passed its own tests, but no version was published",
    "NOT_TESTED": "was not tested",
}
REASONS = {
    "not_memorised": "the model already treated these texts like unseen texts, so it was not trained on them",
    "probe_answered": "a question or another prompt still brought out what it must not",
    "criterion_missed": "the means over all requests stayed above their limits",
    "utility_budget_exceeded": "the model would have lost too much of its general ability",
    "total_utility_budget_exceeded": "all versions together would have lost too much of the model's general ability",
    "neighbours_lost": "the model would have lost too much of what is most like the texts",
    "earlier_request_regressed": "the model would have produced texts of an earlier request again",
    "attack_succeeded": "an attack that the policy lets block succeeded",
    "attack_not_run": "an attack that the policy lets block could not be run",
}
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #8884; padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere }
code { font-size: .85em; overflow-wrap: anywhere }
svg { width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
"""
COPIES = (
    "A copy that was tested was made of the files listed here. EL, MA and the probes of all requests were measured on "
    "it, but no attack, and no damage to other text. The release does not hold it: `unlearnd quantise` makes it."
)


def markdown(statement: Statement) -> str:
    """The certificate in plain words."""
    return "\n".join([*_head(statement), *_trajectory(statement["predicate"]), *_rest(statement)]) + "\n"


def html(statement: Statement) -> str:
    """The same text as a self-contained page: no scripts, and no fonts or pictures from elsewhere."""
    from markdown_it import MarkdownIt  # most processes make no page

    predicate = statement["predicate"]
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = [
        parser.render("\n".join(_head(statement))),
        training_chart(predicate),
        parser.render("\n".join([*_trajectory(predicate), *_rest(statement)])),
    ]
    title = escape(f"{predicate['title']}: {predicate['lineage']['model']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body>\n{''.join(body)}</body></html>\n"
    )


def _head(statement: Statement) -> Iterator[str]:
    """The overall result, the verdict on each request, and the tests."""
    predicate = statement["predicate"]
    yield f"# {_plain(predicate['title'])}"
    yield f"\n**{predicate['overall']}**: {_what_happened(predicate)}\n"
    issued, issuer = _plain(predicate["issued_at"]), _plain(predicate["issuer"])
    yield f"Issued {issued} by {issuer}, certificate {predicate['certificate_id']}."
    yield f"\n## Requests\n\n{_plain(_request_count(predicate['forget_set']))}."
    yield "Only a submitter knows which reference is theirs.\n"
    rows = [(f"`{r['ref']}`", VERDICTS[r["verdict"]], _reason(r)) for r in predicate["requests"]]
    yield from _table(("reference", "this request", "reason"), rows)
    yield from _tests(predicate)
    if predicate["lineage"]["version"] is not None:
        yield "\n## How training went\n"


def _tests(predicate: Predicate) -> Iterator[str]:
    """The results of the tests before and after training, with their limits."""
    tests = predicate["verification"]
    yield "\n## Tests\n"
    dtype = _plain(predicate["artefacts"]["evaluated_dtype"])
    yield f"The tests ran on {_plain(tests['evaluated'])}. They were computed in {dtype}. {_limits(predicate)}\n"
    if tests["before"]:
        means_after: CertifiedMeans | Limits = tests["after"] or {}
        names: dict[Literal["el", "ma"], str] = {
            "el": "EL: how much of a text the model reproduces, given a part of it",
            "ma": "MA: how much of a text the model predicts, piece by piece",
        }
        yield from _table(
            ("mean over the requests", "before", "after", "limit, from unseen text"),
            [
                (text, *(trimmed(means.get(key, "")) for means in (tests["before"], means_after, tests["limits"])))
                for key, text in names.items()
            ],
        )
    if utility := tests["utility"]:
        before, after, ratio, limit = (
            trimmed(utility[name])
            for name in ("heldout_perplexity_before", "heldout_perplexity_after", "heldout_ratio", "max_ratio")
        )
        yield f"\nPerplexity on held-out text (lower is better): {before} before, {after} after."
        yield f"The ratio is {ratio}; the limit is {limit}."
        yield from _total(utility)
    if (probes := tests.get("probes")) and probes["asked"] in NONE:
        yield "\nPrompts that must not bring out a secret: none was asked."
    elif probes:
        asked, before, after = (in_words(probes[part]) for part in ("asked", "answered_before", "answered_after"))
        yield f"\nPrompts that must not bring out a secret: {asked}, each asked greedily and in {probes['samples']}"
        yield f"samples. The model said the secret of {before} of them before, and of {after} afterwards."
        yield "The samples may have been drawn in bfloat16; whether one counts was computed in float32."
    if earlier := tests["earlier"]:
        yield f"\nRequests of earlier versions that were measured again: {earlier['requests']}; by EL itself:"
        yield f"{earlier.get('exact', earlier['requests'])}; came back: {len(earlier['regressed'])}."


def _total(utility: CertifiedUtility) -> Iterator[str]:
    """The same relative to version 0; certificates of older schemas and jobs do not have it."""
    first, ratio = utility.get("first_heldout_perplexity"), utility.get("total_ratio")
    limit = utility.get("max_total_ratio")
    if first and ratio and limit:
        yield f"Version 0 had {trimmed(first)}. The ratio of all versions is {trimmed(ratio)};"
        yield f"the limit is {trimmed(limit)}."


def _what_happened(predicate: Predicate) -> str:
    """The result of the run in one or two sentences."""
    lineage, method = predicate["lineage"], predicate["method"]
    model, parent = _plain(lineage["model"]), lineage["parent_version"]
    if predicate["artefacts"]["published"]:
        return (
            f"version {parent} of the model {model} was trained to stop producing the submitted texts "
            f"({_plain(method['name'])}, {_plain(method['source'])}). The result passed its tests and was published as "
            f"version {lineage['version']}, which supersedes version {parent}."
        )
    if predicate["overall"] == "PASS":
        return (
            f"version {parent} of the model {model} was tested. It already treats the submitted texts like unseen "
            f"texts, so it was not changed."
        )
    return (
        f"version {parent} of the model {model} was trained to stop producing the submitted texts. The result did not "
        f"pass its tests, so nothing was published."
    )


def _rest(statement: Statement) -> Iterator[str]:
    """The scope, the attacks, the criterion, the files, and the settings of the run."""
    predicate = statement["predicate"]
    yield "\n## What was and was not tried\n"
    yield f"{_plain(predicate['scope'])}\n"
    yield from _table(ATTACK_HEADERS, attack_rows(predicate["verification"]["attacks"]))
    yield from _copies(predicate["verification"].get("quantised", []))
    yield "\n## Criterion\n"
    yield _plain(predicate["verification"]["criterion"])
    yield "\n## Files\n"
    rows = [(s["name"], f"`{s['digest']['sha256']}`") for s in statement["subject"]]
    yield from _table(("file", "sha256"), rows)
    yield "\n## Settings\n"
    yield from _table(("setting", "value"), list(_settings(predicate)))
    yield "\nThis text was made from the signed certificate and proves nothing by itself."
    yield "The command `unlearnd verify` checks the certificate."


def _copies(copies: Sequence[Quantised]) -> Iterator[str]:
    """The quantised copies, if there are any."""
    if copies:
        yield f"\n## Quantised copies\n\n{COPIES}\n"
        yield from _table(COPY_HEADERS, copy_rows(copies))


def _settings(predicate: Predicate) -> Iterator[tuple[str, str]]:
    """Everything that the run used: reference texts, parameters, device, packages, the log."""
    for texts in predicate["corpora"]:
        yield f"{texts['role']} texts", f"{texts['records']} texts, sha256 {texts['sha256']}"
    if overlap := predicate["verification"].get("heldout_overlap"):
        yield "held-out texts that are also retain texts", f"{overlap['exact']}, and {overlap['near']} near copies"
    settings = {
        **predicate["method"]["parameters"],
        "the reference began from": predicate["method"].get("reference"),
        "base of the reference": predicate["method"].get("base"),
        "device": predicate["environment"]["device"],
        **predicate["environment"]["packages"],
        "merge": predicate["artefacts"]["merge"],
        "log": f"{predicate['log']['origin']}, {predicate['log']['before']['size']} entries before the run",
    }
    yield from ((name, str(value)) for name, value in settings.items() if value is not None)


def _request_count(forget_set: ForgetSet) -> str:
    """How many requests, and the range of the number of texts that were submitted with them."""
    requests, records = forget_set["requests"], forget_set["records"]
    return f"{requests} request{'s' if requests != 1 else ''} with {in_words(records)} submitted texts in total"


def _reason(request: CertifiedRequest) -> str:
    """Why a request has its verdict, and whether its texts were submitted before."""
    reason = REASONS.get(request["reason"] or "", request["reason"] or "")
    earlier = request["supplements"]
    resubmitted = f"the texts of {earlier} were submitted again" if earlier else ""
    return "; ".join(sentence for sentence in (reason, resubmitted) if sentence)


def _limits(predicate: Predicate) -> str:
    """Where the limits come from, and why means are not shown, if they are not."""
    tests = predicate["verification"]
    limits = "The limits are the scores of held-out text. They were fixed before training."
    if not tests["before"] or SUPPRESSED not in tests["before"].values():
        return limits
    counted = "submitters" if "submitters" in predicate["forget_set"] else "requests"  # schema 1 counted requests
    few = f"fewer than {tests['suppressed_under']} {counted}, or mostly over one"
    return f"{limits} Means over {few}, are not shown, because they would be about a person."


def _trajectory(predicate: Predicate) -> Iterator[str]:
    """The metrics after each epoch, as a table."""
    epochs = predicate["training"]["trajectory"]
    if epochs:
        rows = [(str(e["epoch"]), *(trimmed(e[k]) for k in ("el", "ma", "heldout_perplexity"))) for e in epochs]
        yield ""
        yield from _table(("epoch", "mean EL", "mean MA", "held-out perplexity"), rows)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; a cell that starts with a backtick is code and stays as it is."""
    yield f"| {' | '.join(headers)} |"
    yield f"|{'---|' * len(headers)}"
    for row in rows:
        yield f"| {' | '.join(cell if cell.startswith('`') else _plain(cell) for cell in row)} |"


def _plain(text: str) -> str:
    """Text on one line, with every Markdown character escaped."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
