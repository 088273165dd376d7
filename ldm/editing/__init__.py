"""Text-driven local image editing. `from ldm.editing import Editor` loads nothing heavy until it is used.

editor = Editor.load()
result = editor.edit("photo.jpg", "mask.png", "a pink yarn ball", n_samples=4)
result.results[0].save("best.png")
"""

import importlib
from typing import Any

_HOMES = {
    "EditRequest": "request",
    "EditResult": "result",
    "EditTask": "result",
    "Editor": "editor",
    "Predictions": "result",
    "ReconstructionOptions": "request",
    "Restored": "editor",
    "SamplingRequest": "request",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
