"""Text-driven local image editing. `from ldm.editing import Editor` loads nothing heavy until it is used.

editor = Editor.load()
edited = editor.edit("photo.jpg", "mask.png", "a pink yarn ball", n_samples=4)
edited.results[0].save("best.png")
"""

import importlib
from typing import Any

_HOMES = {
    "Editor": "ldm.editing.editor",
    "EditRequest": "ldm.editing.edit",
    "Edited": "ldm.editing.editor",
    "Place": "ldm.imaging.canvas",
    "ReconstructionOptions": "ldm.editing.reconstruct",
    "Restored": "ldm.editing.editor",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
