"""Equations without a network: a ```math block of TeX becomes a picture in the page, drawn by matplotlib.

The same block is an equation on GitHub too.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

# Size of the drawing's own letters, and how much larger than the text around it they are shown.
UNITS = 20.0
SCALE = 1.2
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def on_config(config: Any) -> Any:
    """Have SuperFences give ```math blocks to `fence`."""
    options = config["mdx_configs"].setdefault("pymdownx.superfences", {})
    options["custom_fences"] = [{"name": "math", "class": "equation", "format": fence}]
    return config


def fence(source: str, *_: Any, **__: Any) -> str:
    """The HTML of a block: a picture in the colour of the text, read out as its TeX."""
    return f'<div class="equation">{svg(" ".join(source.split()))}</div>'


def svg(tex: str) -> str:
    """One equation as an inline SVG."""
    drawn = TextPath((0, 0), f"${tex}$", size=UNITS, prop=FontProperties(math_fontfamily="stix"))
    (left, bottom), (right, top) = drawn.get_extents().get_points()
    width, height = right - left, top - bottom
    size = f'width="{SCALE * width / UNITS:.2f}em" height="{SCALE * height / UNITS:.2f}em"'
    view = f'viewBox="{left:.1f} {-top:.1f} {width:.1f} {height:.1f}"'
    path = f'<path d="{"".join(_commands(drawn))}"/>'
    return f'<svg role="img" aria-label="{escape(tex)}" {view} {size}>{path}</svg>'


def _commands(drawn: Path) -> Iterator[str]:
    for points, code in drawn.iter_segments(simplify=False, curves=True):
        if code == Path.CLOSEPOLY:
            yield "Z"
        else:
            # Upwards is downwards in SVG.
            yield COMMANDS[code] + " ".join(f"{number:.1f}" for number in (np.reshape(points, (-1, 2)) * (1, -1)).flat)
