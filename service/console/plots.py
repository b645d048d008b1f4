"""Plots as SVG, drawn here. Colours are told apart by shape, too, and every plot stands beside its table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 56, 16, 34, 34
SHAPES = ("circle", "square", "triangle", "diamond")  # of the points of a line: a colour alone would not do
ROW, LABELS = 34, 190


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot.

    Attributes:
        name: What it shows.
        values: (x, y) of each point.
        limit: A dashed line at this height, the limit of the values.
    """

    name: str
    values: Sequence[tuple[float, float]]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """The ranges of both axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        """Where a value lies from left to right."""
        low, high = self.x
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1), 1)

    def down(self, value: float) -> float:
        """Where a value lies from top to bottom."""
        low, high = self.y
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / ((high - low) or 1)), 1)


def lines(title: str, shown: Sequence[Line], *, x_name: str, from_zero: bool = True) -> Markup:
    """Lines over a common axis, each with the shape of its points; nothing if there is no point."""
    shown = [line for line in shown if line.values]
    if not shown:
        return Markup()
    xs = [x for line in shown for x, _ in line.values]
    ys = [y for line in shown for _, y in line.values] + [line.limit for line in shown if line.limit is not None]
    room = (max(ys) - min(ys)) * 0.08 or max(abs(max(ys)) * 0.05, 1e-9)
    scale = Scale((min(xs), max(xs)), (0.0 if from_zero else min(ys) - room, max(ys) + room))
    parts = [*_axes(scale, x_name), *(part for place, line in enumerate(shown) for part in _line(scale, place, line))]
    return _svg(title, HEIGHT, parts)


def _axes(scale: Scale, x_name: str) -> list[Markup]:
    """The axes with three or so marks each."""
    low, high = scale.y
    parts = []
    for height in (low, (low + high) / 2, high):
        y = scale.down(height)
        parts.append(Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 8, y + 4, f"{height:.3g}", "end"))
    first, last = scale.x
    step = max(1, math.ceil((last - first) / 10))
    for x in range(math.ceil(first), math.floor(last) + 1, step):
        parts.append(_text(scale.across(x), HEIGHT - BOTTOM + 16, str(x), "middle"))
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x_name, "middle")]


def _line(scale: Scale, place: int, line: Line) -> list[Markup]:
    """A line with its points, its limit and its entry in the legend."""
    points = [(scale.across(x), scale.down(y)) for x, y in line.values]
    path = " ".join(f"{x},{y}" for x, y in points)
    parts = [Markup('<polyline class="line c{}" points="{}"/>').format(place, path)]
    parts += [_mark(place, x, y) for x, y in points]
    at = LEFT + (WIDTH - LEFT - RIGHT) / 3 * place
    parts += [_mark(place, at + 6, 14), _text(at + 16, 18, line.name)]
    if line.limit is not None:
        y = scale.down(line.limit)
        ends = Markup('x1="{}" y1="{}" x2="{}" y2="{}"').format(LEFT, y, WIDTH - RIGHT, y)
        parts.append(Markup('<line class="limit c{}" {}/>').format(place, ends))
        parts.append(_text(WIDTH - RIGHT, y - 5, f"limit of {line.name}: {line.limit:.3g}", "end"))
    return parts


def bars(title: str, rows: Sequence[tuple[str, float, float | None]], *, name: str, other: str) -> Markup:
    """A value of each row as a filled bar, and beside it another value as an empty one."""
    if not rows:
        return Markup()
    top = max([1e-9, *(value for _, value, _ in rows), *(value for *_, value in rows if value is not None)])
    room = WIDTH - LABELS - 70
    parts = [
        Markup('<rect class="bar c0" x="{}" y="4" width="12" height="10"/>').format(LABELS),
        _text(LABELS + 18, 13, name),
        Markup('<rect class="hollow c1" x="{}" y="4" width="12" height="10"/>').format(LABELS + 200),
        _text(LABELS + 218, 13, other),
    ]
    for place, (label, value, control) in enumerate(rows):
        y = 26 + place * ROW
        parts.append(_text(LABELS - 8, y + 16, label, "end"))
        for offset, shape, size in ((0, "bar c0", value), (13, "hollow c1", control)):
            if size is None:
                continue
            width = round(max(room * size / top, 1), 1)
            rect = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="11"/>')
            parts.append(rect.format(shape, LABELS, y + offset, width))
            parts.append(_text(LABELS + width + 6, y + offset + 10, f"{size:.3g}"))
    return _svg(title, 30 + ROW * len(rows), parts)


def _mark(place: int, x: float, y: float) -> Markup:
    """A point of the line with this place in the legend."""
    shape = SHAPES[place % len(SHAPES)]
    if shape == "circle":
        return Markup('<circle class="mark c{}" cx="{}" cy="{}" r="4"/>').format(place, x, y)
    corners = {
        "square": [(-4, -4), (4, -4), (4, 4), (-4, 4)],
        "triangle": [(0, -5), (5, 4), (-5, 4)],
        "diamond": [(0, -5), (5, 0), (0, 5), (-5, 0)],
    }[shape]
    path = " ".join(f"{round(x + right, 1)},{round(y + down, 1)}" for right, down in corners)
    return Markup('<polygon class="mark c{}" points="{}"/>').format(place, path)


def _text(x: float, y: float, words: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(round(x, 1), round(y, 1), anchor, words)


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(WIDTH, height, escape(title)) + Markup("").join(parts) + Markup("</svg>")
