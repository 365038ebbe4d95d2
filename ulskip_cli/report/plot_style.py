"""Style of all plots: colours, panels, axis limits, legends, and the saving of figures."""

import base64
import colorsys
import io
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ulskip_cli.core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#24303c", "#8a97a5"  # text and axes; grids and reference lines
# Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = {
    "full": "#7f8b97",
    "unified": "#0a7bc2",
    "top_skip": "#e69f00",
    "bottom_skip": "#009e73",
    "early_exit": "#d55e00",
    "skip_decode": "#cc79a7",
    "block_influence": "#7b61c9",
    "one_block": "#b0466f",
    "search": "#3d9ca8",
    "custom": "#8c6d46",
}
MARKERS = "osD^vP*X"
MAX_TITLE = 58  # characters over half a figure
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # named with every text of an SVG
    "text.parse_math": False,  # names of rows are no formulas
    # text stays text; the same figure gives the same file
    "svg.fonttype": "none",
    "svg.hashsalt": "ulskip",
}


class SavedPlot(NamedTuple):
    """A plot that is written to disk."""

    caption: str  # what the plot shows
    aspect: float  # width over height
    files: list[Path]  # the PNG and the SVG

    @property
    def data_uri(self) -> str:
        """The SVG encoded as the source of an image element."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.files[1].read_bytes()).decode()


def strategy_colour(strategy: str) -> str:
    """Return the colour of a strategy, the same in every plot; the name of a strategy without an
    entry in COLOURS decides its hue.
    """
    number = zlib.crc32(strategy.encode())
    hue, shade = number % 4093 / 4093, number % 31 / 31
    levels = colorsys.hls_to_rgb(hue, 0.35 + 0.25 * shade, 0.5)
    return COLOURS.get(strategy, "#" + "".join(f"{round(255 * level):02x}" for level in levels))


def applied() -> AbstractContextManager[None]:
    """Apply the style of all plots within a `with` block."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Write a figure as PNG on white and as transparent SVG, each atomically; `path` has no
    suffix.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=150, pil_kwargs={"compress_level": 3})
    figure.set_layout_engine("none")  # the layout is computed once for both files
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file, stream in zip(files, (png, svg), strict=True):
        write_atomic(file, stream.getvalue())
    return files


def panels(
    count: int, width: float, height: float, columns: int = 2, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its axes; each panel has the given size in inches."""
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False, **options).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def legend_below(figure: "Figure", handles: "Mapping[str, Artist]") -> None:
    """Add one legend below all panels; `handles` maps labels to plotted artists."""
    if handles:
        columns = -(-len(handles) // -(-len(handles) // 5))  # rows of equal length, at most 5 each
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=columns,
            handlelength=1.6,
        )


def limit_to(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Set the limits of both axes from the points only, so that one wide interval does not crush
    the plot.
    """
    for name, values in zip(("xlim", "ylim"), zip(*points, strict=True), strict=True):
        margin = 0.1 * (max(values) - min(values)) or 0.1
        axes.set(**{name: (min(values) - margin, max(values) + margin)})


def draw_interval(
    axes: "Axes",
    point: tuple[float, float],
    ends: tuple[float, float],
    colour: str,
    across: bool = False,
) -> None:
    """Draw a vertical interval (horizontal with `across`) through a point; an arrowhead marks an
    end beyond the axis.
    """
    limits = axes.get_xlim() if across else axes.get_ylim()
    inside = max(ends[0], limits[0]), min(ends[1], limits[1])
    draw = axes.hlines if across else axes.vlines
    draw(point[across], *inside, color=colour, linewidth=1.1, alpha=0.8)
    for end, whole, marker in zip(inside, ends, "<>" if across else "v^", strict=True):
        if end != whole:
            at = (end, point[1]) if across else (point[0], end)
            look: dict[str, Any] = {"markersize": 5, "scalex": False, "scaley": False}
            axes.plot(*at, marker, color=colour, clip_on=False, **look)


def annotate(
    axes: "Axes", text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any
) -> None:
    """Write a small text beside a point; `offset` is in typographic points."""
    look = {"textcoords": "offset points", "color": INK, "fontsize": 8, **look}
    axes.annotate(text, point, xytext=offset, **look)


def shortened(title: str, most: int = MAX_TITLE) -> str:
    """Return a title of at most `most` characters; the beginning of a long title is cut."""
    return title if len(title) <= most else f"…{title[1 - most :]}"
