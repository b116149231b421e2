"""Small SVG charts that take their colours from the page, so that they fit light and dark. No JavaScript.

They are drawn 360 units wide, a phone's width, and grow with their column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 40
COLORS = 6
DASHES = ("", "6 3", "2 3", "8 3 2 3")
MOST_POINTS = 200
"""Points of a line that are drawn; of longer ones, every n-th."""


@dataclass(frozen=True)
class Line:
    """A curve; `color` and `dash` number the page's colours and DASHES."""

    label: str
    points: Sequence[tuple[float, float]]
    color: int
    dash: int
    faint: bool = False


@dataclass(frozen=True)
class Dot:
    """A measured point with the interval of its height; `shape` is one that `mark` draws."""

    label: str
    x: float
    y: float
    low: float
    high: float
    color: int
    shape: str


@dataclass(frozen=True)
class Axes:
    """Data to pixels. Both axes begin at 0 unless the data lie below."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], *, whole: bool = False) -> Axes:
        return cls(ticks(0, max(xs), 5, whole=whole), ticks(min(0, *ys), max(ys), 5))

    def x(self, value: float) -> float:
        return _scale(value, self.x_ticks, LEFT, WIDTH - RIGHT)

    def y(self, value: float) -> float:
        return _scale(value, self.y_ticks, HEIGHT - BOTTOM, TOP)


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole)
    return [float(t) for t in locator.tick_values(low, high if high > low else low + 1)]


def _scale(value: float, marks: Sequence[float], first: float, last: float) -> float:
    return round(first + (value - marks[0]) / (marks[-1] - marks[0]) * (last - first), 1)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> Markup:
    """Curves, of which every point can be read by pointing at it."""
    points = [p for line in lines for p in line.points]
    axes = Axes.around([x for x, _ in points], [y for _, y in points], whole=True)
    parts = list(_frame(axes, x_label, y_label))
    for line in lines:
        step = -(-len(line.points) // MOST_POINTS)
        shown = [*line.points[:-1:step], line.points[-1]]
        path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in (shown if len(shown) > 1 else shown * 2))
        style = f'class="line s{line.color % COLORS}{" faint" if line.faint else ""}"'
        parts.append(f'<polyline {style} stroke-dasharray="{DASHES[line.dash % len(DASHES)]}" points="{path}"/>')
        if not line.faint:
            parts += [
                f'<circle class="hit" cx="{axes.x(x)}" cy="{axes.y(y)}" r="5"><title>{escape(line.label)}, '
                f"step {x:g}: {y:.3f}</title></circle>"
                for x, y in shown
            ]
    return _svg(f"{y_label} by {x_label}: {', '.join(line.label for line in lines if not line.faint)}", parts)


def dot_chart(dots: Sequence[Dot], x_label: str, y_label: str) -> Markup:
    """Points with their 95 % intervals."""
    axes = Axes.around([d.x for d in dots], [d.high for d in dots])
    parts = list(_frame(axes, x_label, y_label))
    for dot in dots:
        x, y = axes.x(dot.x), axes.y(dot.y)
        title = f"{dot.label}: {dot.y:.3f} [{dot.low:.3f}, {dot.high:.3f}] at {dot.x:.4g}"
        parts.append(
            f'<g class="dot s{dot.color % COLORS}"><title>{escape(title)}</title>'
            f'<line x1="{x}" x2="{x}" y1="{axes.y(dot.low)}" y2="{axes.y(dot.high)}"/>{mark(dot.shape, x, y)}</g>'
        )
    return _svg(f"{y_label} by {x_label}: {'; '.join(f'{d.label} {d.y:.3f}' for d in dots)}", parts)


def mark(shape: str, x: float, y: float) -> Markup:
    """The mark of a point at pixels x and y."""
    drawn = {
        "circle": f'<circle cx="{x}" cy="{y}" r="5"/>',
        "square": f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>',
        "triangle": f'<path d="M{x} {y - 5:.1f}l5 9h-10z"/>',
        "diamond": f'<path d="M{x} {y - 5:.1f}l5 5l-5 5l-5-5z"/>',
    }
    return Markup(drawn[shape])


def _frame(axes: Axes, x_label: str, y_label: str) -> Iterator[str]:
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    for tick in axes.y_ticks:
        y = axes.y(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="tick" text-anchor="end" x="{LEFT - 5}" y="{y + 3.5:.1f}">{tick:g}</text>'
    for tick in axes.x_ticks:
        x = axes.x(tick)
        yield f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text class="tick" text-anchor="middle" x="{x}" y="{bottom + 15}">{tick:g}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    centre = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text class="label" text-anchor="middle" x="{centre}" y="{HEIGHT - 6}">{escape(x_label)}</text>'
    turned = f'transform="rotate(-90 11 {middle})"'
    yield f'<text class="label" text-anchor="middle" x="11" y="{middle}" {turned}>{escape(y_label)}</text>'


def _svg(description: str, parts: Sequence[str]) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
