"""How predictions look in a notebook."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

_SIDE = 256  # pixels of a thumbnail's longer side


def html_of(images: Sequence[Image.Image], captions: Sequence[str]) -> str:
    """Pictures in a row, each with its caption, as HTML that needs no other file."""
    figures = [
        f'<figure style="margin:0 8px 8px 0"><img src="data:image/png;base64,{_encoded(image)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in zip(images, captions, strict=True)
    ]
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(figures)}</div>'


def _encoded(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = BytesIO()
    small.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
