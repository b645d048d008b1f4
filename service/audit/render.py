"""A record for people: Markdown, and a page with the trajectory as a picture, made from the signed statement alone."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt

from service.domain.disclosure import SUPPRESSED

SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>&~-])")
VERDICTS = {
    "PASS": "passed its tests", "FAIL": "did not pass its tests", "NOT_TESTED": "was not tested",
}  # fmt: skip
REASONS = {
    "not_memorised": "the model treated these texts like unseen ones already; it was not trained on them",
    "criterion_missed": "the means over all requests stayed above their limits",
    "utility_budget_exceeded": "the model would have lost too much of its ability",
    "earlier_request_regressed": "texts of an earlier request would have come back",
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
Series = dict[str, tuple[str, list[float], float | None]]  # name -> colour, values by epoch, limit
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 640, 240, 56, 16, 28, 28


def markdown(statement: dict[str, Any]) -> str:
    """The record in plain words."""
    return "\n".join([*_head(statement), *_trajectory(statement["predicate"]), *_rest(statement)]) + "\n"


def html(statement: dict[str, Any]) -> str:
    """The same as a page that needs nothing else: no script, no font, no picture from elsewhere."""
    predicate = statement["predicate"]
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = [
        reader.render("\n".join(_head(statement))), _picture(predicate),
        reader.render("\n".join([*_trajectory(predicate), *_rest(statement)])),
    ]  # fmt: skip
    title = escape(f"{predicate['title']}: {predicate['lineage']['model']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body>\n{''.join(body)}</body></html>\n"
    )


def _head(statement: dict[str, Any]) -> Iterator[str]:
    """What happened, the verdicts, the tests."""
    predicate = statement["predicate"]
    lineage, tests = predicate["lineage"], predicate["verification"]
    yield f"# {_plain(predicate['title'])}"
    yield f"\n**{predicate['overall']}**: {_what_happened(predicate)}\n"
    issued, issuer = _plain(predicate["issued_at"]), _plain(predicate["issuer"])
    yield f"Issued {issued} by {issuer}, record {predicate['certificate_id']}."
    yield f"\n## Requests\n\n{_plain(_count(predicate['forget_set']))}. Who a reference is, only its submitter knows.\n"
    rows = [(f"`{r['ref']}`", VERDICTS[r["verdict"]], _why(r)) for r in predicate["requests"]]
    yield from _table(("reference", "this request", "because"), rows)
    yield "\n## Tests\n"
    dtype = _plain(predicate["artefacts"]["evaluated_dtype"])
    yield f"On {_plain(tests['evaluated'])}, computed in {dtype}. {_limits(tests)}\n"
    if tests["before"]:
        names = {
            "el": "EL: how much of a text comes out, given a part",
            "ma": "MA: how much is predicted, bit by bit",
        }
        yield from _table(
            ("mean over the requests", "before", "after", "limit, from unseen text"),
            [
                (text, *(_number(m.get(key, "")) for m in (tests["before"], tests["after"] or {}, tests["limits"])))
                for key, text in names.items()
            ],
        )
    if utility := tests["utility"]:
        before, after, ratio, most = (
            _number(utility[name])
            for name in ("heldout_perplexity_before", "heldout_perplexity_after", "heldout_ratio", "max_ratio")
        )
        yield f"\nPerplexity on held-out text: {before} before, {after} after; the ratio {ratio} may be at most {most}."
    if earlier := tests["earlier"]:
        came_back = len(earlier["regressed"])
        yield f"\nRequests of earlier versions measured again: {earlier['requests']}; came back: {came_back}."
    if lineage["version"] is not None:
        yield "\n## How training went\n"


def _what_happened(predicate: dict[str, Any]) -> str:
    lineage, method = predicate["lineage"], predicate["method"]
    model, parent = _plain(lineage["model"]), lineage["parent_version"]
    if predicate["artefacts"]["published"]:
        return (
            f"version {parent} of the model {model} was trained to stop producing the submitted texts "
            f"({_plain(method['name'])}, {_plain(method['source'])}). The result was tested, passed, and was published "
            f"as version {lineage['version']}, which supersedes it."
        )
    if predicate["overall"] == "PASS":
        return (
            f"version {parent} of the model {model} was tested, treats the submitted texts like unseen ones, and was "
            f"left as it is."
        )
    return (
        f"version {parent} of the model {model} was trained to stop producing the submitted texts; the result did not "
        f"pass its tests, and nothing was published."
    )


def _rest(statement: dict[str, Any]) -> Iterator[str]:
    """What was not shown, and what it was done with."""
    predicate = statement["predicate"]
    yield "\n## What was and was not tried\n"
    yield f"{_plain(predicate['scope'])}\n"
    for attack in predicate["verification"]["attacks"]:
        said = f"tried, {attack['result']}" if attack["status"] == "RUN" else "not tried"
        yield f"- {_plain(attack['name'])}: {said}"
    yield "\n## Criterion\n"
    yield _plain(predicate["verification"]["criterion"])
    yield "\n## Files\n"
    rows = [(s["name"], f"`{s['digest']['sha256']}`") for s in statement["subject"]]
    yield from _table(("file", "sha256"), rows)
    yield "\n## With what\n"
    settings = {
        **{f"corpus: {c['role']}": f"{c['records']} texts, sha256 {c['sha256']}" for c in predicate["corpora"]},
        **predicate["method"]["parameters"], "device": predicate["environment"]["device"],
        **predicate["environment"]["packages"], "merge": predicate["artefacts"]["merge"],
        "log": f"{predicate['log']['origin']}, {predicate['log']['before']['size']} entries before the run",
    }  # fmt: skip
    yield from _table(("what", "value"), [(k, str(v)) for k, v in settings.items() if v is not None])
    yield "\nThis text was made from the signed record and proves nothing by itself: `unlearnd verify` does."


def _count(forget_set: dict[str, Any]) -> str:
    requests, records = forget_set["requests"], forget_set["records"]
    how = records.replace("<=", "at most").replace(">", "more than")
    return f"{requests} request{'s' if requests != 1 else ''}, {how} texts together"


def _why(request: dict[str, Any]) -> str:
    why = REASONS.get(request["reason"] or "", request["reason"] or "")
    again = request["supplements"]
    return f"{why}{'; ' if why and again else ''}{f'texts of {again}, submitted again' if again else ''}"


def _limits(tests: dict[str, Any]) -> str:
    hidden = tests["before"] and SUPPRESSED in tests["before"].values()
    few = f" Means of fewer than {tests['suppressed_under']} requests are not told: they would be about a person."
    return f"The limits are what held-out text scores, fixed before training.{few if hidden else ''}"


def _trajectory(predicate: dict[str, Any]) -> Iterator[str]:
    epochs = predicate["training"]["trajectory"]
    if epochs:
        rows = [(str(e["epoch"]), *(_number(e[k]) for k in ("el", "ma", "heldout_perplexity"))) for e in epochs]
        yield ""
        yield from _table(("epoch", "mean EL", "mean MA", "held-out perplexity"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(c if c.startswith('`') else _plain(c) for c in row)} |"


def _number(text: str) -> str:
    """A decimal string without its idle zeros."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _plain(text: str) -> str:
    """Text in which nothing is markup."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _picture(predicate: dict[str, Any]) -> str:
    """Mean MA and EL by epoch under their limits, or the perplexity alone where the means are not told."""
    epochs, tests = predicate["training"]["trajectory"], predicate["verification"]
    if not epochs or not tests["after"]:
        return ""
    if SUPPRESSED in tests["before"].values():
        before = (tests["utility"] or {}).get("heldout_perplexity_before", epochs[0]["heldout_perplexity"])
        values = [float(value) for value in (before, *(e["heldout_perplexity"] for e in epochs))]
        return _chart({"perplexity on held-out text": ("#3b6ea5", values, None)})
    series: Series = {}
    for name, colour in (("ma", "#3b6ea5"), ("el", "#b5532a")):
        values = [float(value) for value in (tests["before"][name], *(e[name] for e in epochs))]
        series[name.upper()] = (colour, values, float(tests["limits"][name]))
    return _chart(series)


def _chart(series: Series) -> str:
    """Lines over epochs from 0, the state before; a limit is dashed."""
    numbers = [v for _, values, limit in series.values() for v in (*values, *([limit] if limit is not None else []))]
    top, steps = max(max(numbers), 1e-9) * 1.05, max(len(values) for _, values, _ in series.values())

    def x(epoch: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * epoch / max(1, steps - 1), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top), 1)

    parts = [f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(steps - 1)}" y2="{y(0)}" stroke="currentColor"/>']
    for value in (0, top / 2, top):
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:.2g}</text>')
    for epoch in range(0, steps, max(1, steps // 10)):
        parts.append(f'<text x="{x(epoch)}" y="{HEIGHT - 8}" text-anchor="middle">{epoch}</text>')
    for place, (name, (colour, values, limit)) in enumerate(series.items()):
        line = " ".join(f"{x(i)},{y(value)}" for i, value in enumerate(values))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        parts += [f'<circle cx="{x(i)}" cy="{y(value)}" r="3" fill="{colour}"/>' for i, value in enumerate(values)]
        said = escape(name if limit is None else f"{name} (dashed: its limit)")
        parts.append(f'<rect x="{LEFT + 260 * place}" y="3" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 260 * place + 16}" y="12">{said}</text>')
        if limit is not None:
            ends = f'x1="{x(0)}" y1="{y(limit)}" x2="{x(steps - 1)}" y2="{y(limit)}"'
            parts.append(f'<line {ends} stroke="{colour}" stroke-dasharray="4 4"/>')
    label = escape("epoch by epoch: " + ", ".join(series))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>\n'
