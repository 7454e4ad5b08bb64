"""A flowchart as a picture: a row for each box, indented like the program, arrows at the sides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logpi.rewards.code.flowchart import Edge, Flowchart

_ROW, _INDENT, _LANE = 0.62, 0.9, 0.28  # inches
_FACE = {"start": "#dcefdc", "return": "#dcefdc", "step": "#e8eef7", "choice": "#fdf1d6"}


def draw(chart: Flowchart, path: str | Path, *, dpi: int = 120) -> None:
    """Writes the picture; its size follows from the chart."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    widths = [0.5 + 0.085 * len(node.text) + 0.5 * (node.kind == "choice") for node in chart.nodes]
    lefts = [node.depth * _INDENT for node in chart.nodes]
    rights = [left + width for left, width in zip(lefts, widths, strict=True)]
    long = [e for e in chart.edges if not _is_short(chart, e)]
    down = _lanes([e for e in long if e.target > e.source])
    up = _lanes([e for e in long if e.target <= e.source])
    left = min(lefts) - _LANE * (2 + max(up.values(), default=0))
    right = max(rights) + _LANE * (2 + max(down.values(), default=0))
    height = _ROW * len(chart.nodes) + 0.2
    figure = Figure(figsize=(right - left, height), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left, right)
    axes.set_ylim(-height + _ROW / 2, _ROW / 2 + 0.1)
    axes.axis("off")
    for place, node in enumerate(chart.nodes):
        _box(axes, node.kind, node.text, lefts[place], -place * _ROW, widths[place])
    for edge in chart.edges:
        source, target = -edge.source * _ROW, -edge.target * _ROW
        if edge not in long:
            here, there = lefts[edge.source] + 0.3, lefts[edge.target] + 0.3
            here = max(here, there) if here <= there else here  # out of a box: one bend; into: none
            bend = (source + target) / 2
            points = [(here, source - 0.2), (here, bend), (there, bend), (there, target + 0.2)]
        elif edge in down:
            x = max(rights) + _LANE * (1 + down[edge])
            points = [(rights[edge.source], source), (x, source), (x, target + 0.08),
                      (rights[edge.target], target + 0.08)]  # fmt: skip
        else:
            x = min(lefts) - _LANE * (1 + up[edge])
            points = [(lefts[edge.source], source), (x, source), (x, target - 0.08),
                      (lefts[edge.target], target - 0.08)]  # fmt: skip
        _arrow(axes, points, edge.label)
    figure.savefig(path, facecolor="white", metadata={"Software": None} if _is_png(path) else None)


def _is_short(chart: Flowchart, edge: Edge) -> bool:
    """Straight down to the next row."""
    return edge.target == edge.source + 1


def _is_png(path: str | Path) -> bool:
    return Path(path).suffix == ".png"


def _lanes(edges: list[Edge]) -> dict[Edge, int]:
    """A lane beside the boxes for each long arrow: the shorter, the closer; none shares a row."""
    taken: list[list[tuple[int, int]]] = []
    lanes = {}
    for edge in sorted(edges, key=lambda e: abs(e.target - e.source)):
        low, high = sorted((edge.source, edge.target))
        for lane, spans in enumerate(taken):  # noqa: B007
            if all(high < a or low > b for a, b in spans):
                break
        else:
            lane = len(taken)
            taken.append([])
        taken[lane].append((low, high))
        lanes[edge] = lane
    return lanes


def _box(axes: Any, kind: str, text: str, x: float, y: float, width: float) -> None:
    from matplotlib.patches import FancyBboxPatch, Polygon

    style: dict[str, Any] = {"facecolor": _FACE[kind], "edgecolor": "#333333", "linewidth": 1.0}
    if kind == "choice":
        corners = [(x, y), (x + 0.25, y + 0.2), (x + width - 0.25, y + 0.2), (x + width, y),
                   (x + width - 0.25, y - 0.2), (x + 0.25, y - 0.2)]  # fmt: skip
        axes.add_patch(Polygon(corners, **style))
    else:
        rounding = 0.18 if kind in ("start", "return") else 0.02
        box = f"round,pad=0,rounding_size={rounding}"
        axes.add_patch(FancyBboxPatch((x, y - 0.2), width, 0.4, boxstyle=box, **style))
    plain = text.replace("$", r"\$")
    axes.text(x + width / 2, y, plain, ha="center", va="center", family="monospace", fontsize=9)


def _arrow(axes: Any, points: list[tuple[float, float]], label: str) -> None:
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color="#333333", linewidth=1.0)
    arrow = {"arrowstyle": "-|>", "color": "#333333", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=arrow)
    (x, y), (next_x, next_y) = points[:2]
    sideways = abs(next_x - x) > abs(next_y - y)
    place = (x + 0.16, y - 0.08)
    if sideways:  # away from the arrows that come in
        place = (x + 0.18, y - 0.09) if next_x > x else (x - 0.18, y + 0.09)
    axes.text(*place, label, ha="center", va="center", fontsize=8, color="#333333")
