"""The chart of a training in a certificate's page: an SVG, made from the statement alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from service.audit.predicate import Predicate
from service.domain.disclosure import SUPPRESSED

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 640, 240, 56, 16, 28, 28


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the chart: `values` before training and after each epoch, and the limit, if there is one."""

    name: str
    colour: str
    values: list[float]
    limit: float | None = None


def training_chart(predicate: Predicate) -> str:
    """An SVG of the metrics over the epochs; empty if nothing was trained."""
    return _chart(_chart_lines(predicate))


def _chart_lines(predicate: Predicate) -> list[_Line]:
    """Mean MA and EL by epoch with their limits, or only the perplexity if the means are not shown."""
    epochs, tests = predicate["training"]["trajectory"], predicate["verification"]
    if not epochs or not tests["after"]:
        return []
    before = tests["before"]
    assert before is not None, "a certificate with means after training has means before it"
    if SUPPRESSED in before.values():
        utility = tests["utility"]
        perplexity = utility["heldout_perplexity_before"] if utility else epochs[0]["heldout_perplexity"]
        values = [float(value) for value in (perplexity, *(e["heldout_perplexity"] for e in epochs))]
        return [_Line("perplexity on held-out text", "#3b6ea5", values)]
    lines = []
    colours: dict[Literal["ma", "el"], str] = {"ma": "#3b6ea5", "el": "#b5532a"}
    for name, colour in colours.items():
        values = [float(value) for value in (before[name], *(e[name] for e in epochs))]
        lines.append(_Line(name.upper(), colour, values, limit=float(tests["limits"][name])))
    return lines


def _chart(lines: Sequence[_Line]) -> str:
    """An SVG of the lines over the epochs; epoch 0 is the state before training, and limits are dashed."""
    if not lines:
        return ""
    heights = [value for line in lines for value in line.values]
    heights += [line.limit for line in lines if line.limit is not None]
    top, steps = max(max(heights), 1e-9) * 1.05, max(len(line.values) for line in lines)

    def x(epoch: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * epoch / max(1, steps - 1), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top), 1)

    shapes = [f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(steps - 1)}" y2="{y(0)}" stroke="currentColor"/>']
    for value in (0, top / 2, top):
        shapes.append(f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:.2g}</text>')
    for epoch in range(0, steps, max(1, steps // 10)):
        shapes.append(f'<text x="{x(epoch)}" y="{HEIGHT - 8}" text-anchor="middle">{epoch}</text>')
    for i, line in enumerate(lines):
        points = [(x(epoch), y(value)) for epoch, value in enumerate(line.values)]
        path = " ".join(f"{across},{down}" for across, down in points)
        shapes.append(f'<polyline fill="none" stroke="{line.colour}" stroke-width="2" points="{path}"/>')
        shapes += [f'<circle cx="{across}" cy="{down}" r="3" fill="{line.colour}"/>' for across, down in points]
        legend = escape(line.name if line.limit is None else f"{line.name} (dashed: its limit)")
        shapes.append(f'<rect x="{LEFT + 260 * i}" y="3" width="10" height="10" fill="{line.colour}"/>')
        shapes.append(f'<text x="{LEFT + 260 * i + 16}" y="12">{legend}</text>')
        if line.limit is not None:
            ends = f'x1="{x(0)}" y1="{y(line.limit)}" x2="{x(steps - 1)}" y2="{y(line.limit)}"'
            shapes.append(f'<line {ends} stroke="{line.colour}" stroke-dasharray="4 4"/>')
    label = escape("values after each epoch: " + ", ".join(line.name for line in lines))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(shapes)}</svg>\n'
