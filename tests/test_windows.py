"""Windows of the mask's shape: their size, edits and batches in them, and the comparison with the model's own shape."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.cli import run
from ldm.editing.editor import Editor
from ldm.editing.request import EditRequest
from ldm.evaluation.windows import ASPECTS, compare, table
from ldm.imaging.region import shaped_size
from scripts import batch_editing
from tests.tiny import save_tiny_model, tiny_model

pytest.importorskip("skimage")


def box(height: int, width: int, image: tuple[int, int] = (300, 300)) -> np.ndarray:
    mask = np.zeros(image, np.uint8)
    mask[40 : 40 + height, 50 : 50 + width] = 255
    return mask


@pytest.mark.parametrize(
    "mask, expected",
    [
        (box(100, 100), (128, 128)),
        (box(50, 80), (96, 160)),
        (box(80, 50), (160, 96)),
        (box(10, 200), (96, 176)),  # no longer than 2:1, as near as multiples of 16 come
        (box(100, 100, (150, 800)), (112, 144)),  # the picture ends before the surroundings do
    ],
)
def test_the_size_has_the_masks_shape_and_the_models_area(mask: np.ndarray, expected: tuple[int, int]):
    size = shaped_size(mask, (128, 128), 16)
    assert size == expected and 0.85 < size[0] * size[1] / 128**2 < 1.15


def test_a_mask_of_nothing_has_no_shape():
    with pytest.raises(ValueError, match="empty"):
        shaped_size(np.zeros((4, 4)), (128, 128), 16)


def test_an_edit_in_a_window_of_the_masks_shape():
    editor, image = Editor(tiny_model()), Image.new("RGB", (300, 300), "green")
    options: dict[str, Any] = {"ddim_steps": 2, "n_samples": 1}
    result = editor.edit(image, box(30, 100), "a red ball", aspect="mask", **options)
    window = result.task.canvas.window
    assert result.task.canvas.size == (48, 96) and window.width == 2 * window.height
    assert result.results[0].size == (300, 300) and result.measures[0].max_difference == 0
    assert (result.task.request.H, result.task.request.W) == (48, 96), "as it is recorded"
    for more in ({"H": 64}, {"region": "whole"}, {"aspect": "native"}):
        request = EditRequest("a red ball", **{"aspect": "mask", **options, **more})
        assert editor.prepare(image, box(30, 100), request).canvas.size == (64, 64)
    assert "96x48" in "\n".join(editor.check(image, box(30, 100), EditRequest("", aspect="mask")).lines())


def test_a_batch_samples_those_of_one_size_together(tmp_path: Path):
    model, rows = save_tiny_model(tmp_path / "model"), []
    for i, mask in enumerate((box(30, 100), box(100, 30), box(30, 100))):
        Image.new("RGB", (300, 300), "green").save(tmp_path / "img.png")
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
        rows.append({"image": "img.png", "mask": f"{i}.png", "prompt": "a red ball", "name": str(i)})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = [
        str(tmp_path / "rows.jsonl"),
        "-o",
        str(tmp_path / "out"),
        "--model",
        str(model),
        "--devices",
        "cpu",
        "--workers",
        "0",
    ]
    assert run(batch_editing.main, [*argv, "--aspect", "mask", "--ddim_steps", "2", "--n_samples", "1"]) == 0
    records = [json.loads((tmp_path / f"out/{i}/samples/run.json").read_text()) for i in range(3)]
    assert [record["size"] for record in records] == [[48, 96], [96, 48], [48, 96]]


def test_both_shapes_are_tried_on_the_same_masks(tmp_path: Path):
    looks = compare(Editor(tiny_model()), 2, 0, 2, 2, tmp_path)
    assert [look.aspect for look in looks] == ["mask", "mask", "native", "native", "native", "native", "mask", "mask"]
    assert {look.size for look in looks if look.aspect == "native"} == {(64, 64)}
    assert {look.size for look in looks if look.aspect == "mask"} <= {(48, 96), (96, 48), (48, 80), (80, 48)}
    assert all(0 < look.detail < 64 for look in looks)
    assert len(json.loads((tmp_path / "windows.json").read_text())) == 8
    lines = table(looks).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(ASPECTS)
    assert (tmp_path / "windows.md").read_text() == table(looks) and (tmp_path / "windows.png").is_file()
