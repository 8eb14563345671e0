"""Line charts in PNG files: one small panel per figure."""

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#808080"  # is read on a light and on a dark page
_STYLE = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _GREY) | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 8,
    "axes.titlesize": 9,
}


def panels(draw: Mapping[str, Callable[["Axes"], None]]) -> bytes:
    """Return a PNG, transparent, with a panel for each title, drawn by its function; one legend for all labels."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(4, len(draw))
    rows = -(-len(draw) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.6 * columns, 1.9 * rows + 0.3), layout="constrained")
        for place, (title, lines) in enumerate(draw.items(), 1):
            lines(figure.add_subplot(rows, columns, place, title=title))
        named = {
            text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=2, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=130, transparent=True)
    return file.getvalue()
