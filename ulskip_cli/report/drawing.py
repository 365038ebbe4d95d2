"""What all pictures share: colours, axes, panels, and the ways in which a figure is kept."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulskip_cli.core.files import write_atomic

INK, FAINT = "#24303c", "#8a97a5"  # of text and axes; of grids and what stands behind
# Told apart by the colour-blind too (Okabe and Ito), on light and on dark paper.
COLOURS = {
    "full": "#7f8b97",
    "unified": "#0a7bc2",
    "top_skip": "#e69f00",
    "bottom_skip": "#009e73",
    "early_exit": "#d55e00",
    "skip_decode": "#cc79a7",
    "block_influence": "#7b61c9",
    "search": "#3d9ca8",
    "custom": "#8c6d46",
}
OTHERS = ("#4fa8a0", "#b5504b", "#9a9a2f", "#6d7fb3")  # for strategies of a user's own
MARKERS = "osD^vP*X"
PIXELS_PER_INCH = 150
Interval = tuple[tuple[float, float], tuple[float, float]]  # two points, x and y
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "ulskip",
}


def colour(strategy: str) -> str:
    """A strategy's own colour, the same in every picture."""
    return COLOURS.get(strategy) or OTHERS[sum(map(ord, strategy)) % len(OTHERS)]


@contextmanager
def style() -> Iterator[None]:
    """While figures are drawn: quiet axes, one ink."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def panels(count: int, width: float, height: float, columns: int = 2, **more: Any) -> tuple[Any, list[Any]]:
    """A figure with so many axes, each of a size in inches."""
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False, **more).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def legend_below(figure: Any, handles: Sequence[Any], labels: Sequence[str], columns: int = 5) -> None:
    """One legend for all panels, under them."""
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), handlelength=1.6)


def bars(axes: Any, ends: Sequence[Interval], shade: str, alpha: float = 1.0) -> None:
    """Intervals as one path, which takes a tenth of the time that a path each would."""
    gap = (math.nan, math.nan)
    xs, ys = zip(*(point for start, end in ends for point in (start, end, gap)), strict=True)
    axes.plot(xs, ys, color=shade, linewidth=1.1, alpha=alpha, solid_capstyle="butt")


def saved(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG, each whole or not at all.

    Args:
        figure: to keep.
        path: of the files, without suffix.
    """
    settle(figure)
    return [_kept(figure, path.with_suffix(suffix)) for suffix in (".png", ".svg")]


def _kept(figure: Any, file: Path) -> Path:
    stream = io.BytesIO()
    if file.suffix == ".png":
        figure.savefig(stream, format="png", dpi=PIXELS_PER_INCH, pil_kwargs={"compress_level": 3})
    else:
        figure.savefig(stream, format="svg", metadata={"Date": None})
    write_atomic(file, stream.getvalue())
    return file


def settle(figure: Any) -> None:
    """Lay a figure out once, and not again whenever it is kept in one more form."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def inline_svg(figure: Any, name: str) -> str:
    """A figure as an element of a page: transparent, its ink the page's, its ids its own.

    Args:
        figure: to draw.
        name: that makes its ids differ from those of other figures of the page.
    """
    import matplotlib

    settle(figure)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # its rules would hold for the whole page
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(
        r"(font(?:-family)?:[^;\"]*?)(?:'[^']*'|DejaVu Sans)(?:, (?:'[^']*'|[\w-]+))*", r"\1system-ui, sans-serif", text
    )
    text = re.sub(r"\b(id=\"|xlink:href=\"#|url\(#)", rf"\g<1>{name}-", text)
    text = re.sub(r"^<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" stroke-linejoin="round" ', text)
    text = re.sub(r"\n\s*\n+", "\n", text)
    return text.replace(INK, "currentColor")
