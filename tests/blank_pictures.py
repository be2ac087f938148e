"""Pictures of one white pixel: `spr-or solve` takes three quarters of its time to draw two figures.

Tests of benches, commands and tables get them, unless they are marked ``pictures`` (see conftest).
"""

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

drawn = Figure.savefig


def blank(figure: Figure, place: Any, **settings: Any) -> None:
    """Takes the place of ``Figure.savefig``; other formats than PNG are drawn."""
    named = Path(place).suffix if isinstance(place, str | Path) else ""
    if (settings.get("format") or named.removeprefix(".")) != "png":
        drawn(figure, place, **settings)
        return
    content = io.BytesIO()
    Image.new("L", (1, 1), 255).save(content, "png")
    Path(place).write_bytes(content.getvalue())
