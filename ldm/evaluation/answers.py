"""What an evaluation has found so far, on disk: a run that was stopped resumes there."""

import json
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import atomic_file, write_error


class Answers:
    """A file of one JSON object a line: first the settings of the run, then its answers, in whatever order they came.

    Args:
        path: the file; it and its folder are made where there is none.
        settings: what runs must share for their answers to go together.

    Raises:
        UserError: the file holds answers of other settings, is damaged, or cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            whole = text[: text.rfind("\n") + 1] or json.dumps(settings) + "\n"
            first, *self._lines = (json.loads(line) for line in whole.splitlines())
            if not (isinstance(first, dict) and all({"part", "index"} <= line.keys() for line in self._lines)):
                raise ValueError
            if whole != text:  # new, or a line was cut off: that one is asked again
                with atomic_file(path) as file:
                    file.write(whole.encode())
        except OSError as error:
            raise write_error(path, error) from error
        except (ValueError, AttributeError) as error:
            raise UserError(f'"{path}" is damaged: give another `outdir`, or remove it') from error
        changed = sorted(key for key in first.keys() | settings.keys() if first.get(key) != settings.get(key))
        if changed:
            what = ", ".join(changed)
            raise UserError(f'"{path.parent}" is an evaluation of another {what}: give another `outdir`, or remove it')

    def of(self, part: str) -> dict[int, dict[str, Any]]:
        """The answers to the triples of a part, by their numbers."""
        return {line["index"]: line for line in self._lines if line["part"] == part}

    def add(self, answer: dict[str, Any]) -> None:
        """Keep an answer, which has a "part" and an "index"; raises UserError where it cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(answer) + "\n")
        except OSError as error:
            raise write_error(self.path, error) from error
        self._lines.append(json.loads(json.dumps(answer)))
