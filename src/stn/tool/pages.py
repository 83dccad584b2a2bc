"""What the HTML pages share: templates, pictures inside the page, numbers as text."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from stn.tool import runs


def render(template: str, values: dict[str, Any]) -> str:
    """Fill one of the templates; the page needs nothing but itself.

    Args:
        template: The name of a file in the folder of templates.
        values: What it shows; texts are escaped.
    """
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(template).render(values)


def embed(data: bytes, kind: str, *, scale: int = 1) -> dict[str, Any]:
    """A picture as the templates take it, shown at a fraction of its size, for sharp screens."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": source, "width": width // scale, "height": height // scale}


def embed_picture(picture: Image.Image) -> dict[str, Any]:
    """A picture as PNG, with all its colors."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return embed(buffer.getvalue(), "image/png")


def embed_file(file: Path, *, scale: int = 1) -> dict[str, Any] | None:
    """A PNG of a run, with few colors; None if it is not there."""
    if not file.exists():
        return None
    with runs.reading(file), Image.open(file) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    return embed(buffer.getvalue(), "image/png", scale=scale)


def size_of(pictures: Any) -> int:
    """How many bytes embedded pictures take on the page."""
    return sum(len(picture["source"]) for picture in pictures)


def percent(value: Any) -> str:
    """A share, or a dash."""
    return f"{100 * value:.1f}%" if runs.is_number(value) else "—"


def duration(seconds: float) -> str:
    """Seconds, as people say them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def plain(value: Any) -> str:
    """Any value of a JSON file as text."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)
