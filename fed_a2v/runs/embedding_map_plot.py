"""Static plot of the map of the embedding space, for W&B and TensorBoard; the report has an interactive one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.install import install_hint
from fed_a2v.storage.plain_text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("fed_a2v")

MARKERS = "osD^v<>pPX*h"
# Maximum number of classes for a legend; with more, only the names in the plot distinguish them.
MOST_IN_LEGEND = 20


def map_figure(found: EmbeddingMap) -> Figure:
    """Real points filled, synthetic ones hollow, on the first two axes; each class by colour, marker and name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a dollar in a name does not start a formula
        return _drawn(found)


def _drawn(found: EmbeddingMap) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    panel = figure.subplots()
    points = found.coordinates[:, :2]
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 1)))
    for label, name in enumerate(map(one_line, found.classes.tolist())):
        colour = colormaps["turbo"](0.05 + 0.9 * label / max(1, len(found.classes) - 1))
        marker = MARKERS[label % len(MARKERS)]
        for synthetic, face in ((True, "none"), (False, colour)):
            here = points[(found.labels == label) & (found.synthetic == synthetic)]
            panel.scatter(
                here[:, 0], here[:, 1], marker=marker, s=22, facecolors=face, edgecolors=[colour], linewidths=0.8
            ).set_label("" if synthetic else name.replace("_", " "))
        mine = points[found.labels == label]
        if len(mine):
            panel.annotate(name.replace("_", " "), mine.mean(axis=0), fontsize="x-small", ha="center")
    if len(found.classes) <= MOST_IN_LEGEND:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    shares = [f" ({share:.0%} of the variance)" for share in found.explained[:2]] + ["", ""]
    panel.set_xlabel(f"axis 1{shares[0]}")
    panel.set_ylabel(f"axis 2{shares[1]}")
    panel.set_title("Embeddings: filled real, hollow synthetic", fontsize="medium")
    return figure


def map_pixels(found: EmbeddingMap, level: int = logging.WARNING) -> NDArray[np.uint8] | None:
    """The plot as (H, W, 3) pixels; None without matplotlib, which is logged at `level`."""
    try:
        figure = map_figure(found)
    except ImportError:
        log.log(level, "The plot of the embeddings needs matplotlib: %s", install_hint("plots"))
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
