"""The figures of docs/studio.md: python docs/studio_measured.py

Starts a studio of the model `scenes` and a Chromium without a GPU, and measures what a user waits for.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
PATIENCE = 600_000  # milliseconds

# Moves of a stroke with a wide brush: how long the page is busy with each, and how far the frames are apart.
STROKE = """async () => {
    const viewport = document.getElementById("viewport"), box = viewport.getBoundingClientRect();
    const at = (name, i) => viewport.dispatchEvent(new PointerEvent(name, {
        pointerId: 1, button: 0, buttons: 1, bubbles: true, pointerType: "mouse",
        clientX: box.left + box.width * (0.3 + 0.4 * i / 60),
        clientY: box.top + box.height * (0.5 + 0.2 * Math.sin(i / 6)),
    }));
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    const busy = [], apart = [];
    at("pointerdown", 0);
    let last = await frame();
    for (let i = 1; i <= 60; i++) {
        const begun = performance.now();
        at("pointermove", i);
        busy.push(performance.now() - begun);
        const now = await frame();
        apart.push(now - last);
        last = now;
    }
    at("pointerup", 60);
    return [busy, apart];
}"""


def photograph(width: int, height: int) -> bytes:
    rough = np.random.default_rng(0).integers(0, 255, (height // 10, width // 10, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def spread(values: list[float]) -> str:
    return f"median {statistics.median(values):.1f} ms, longest {max(values):.1f} ms"


def measure_stroke(page: Page, width: int, height: int) -> None:
    page.set_input_files(
        "#photo-file", {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": photograph(width, height)}
    )
    page.wait_for_selector(f'#viewport[aria-label*="{width} by {height}"]')
    page.wait_for_timeout(2000)
    busy, apart = page.evaluate(STROKE)
    print(f"stroke on {width}x{height}: page busy with a move {spread(busy)}; frames {spread(apart)} apart")


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(PATIENCE)
        begun = time.monotonic()
        words = ["--no-browser", "--port", "0", "--model", "scenes", "--outdir", folder]
        studio = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/studio.py"), *words], stdout=subprocess.PIPE, text=True
        )
        assert studio.stdout is not None
        try:
            page.goto(studio.stdout.readline().split()[1])
            page.wait_for_selector("#settings-fields .field", state="attached")
            page.set_input_files("#photo-file", ROOT / "inputs/img.png")
            page.wait_for_selector("body:not(.empty)")
            print(f"from the command to a photograph that can be painted on: {time.monotonic() - begun:.1f} s")
            page.wait_for_selector("#status[data-state=ready]")
            print(f"from the command to the model loaded: {time.monotonic() - begun:.1f} s")
            page.set_input_files("#mask-file", ROOT / "inputs/donut_mask.png")
            page.fill("#prompt", "a white donut")
            for i in range(3):
                page.wait_for_timeout(500)
                page.click("#run")
                begun = time.monotonic()
                page.wait_for_selector("#tag:not([hidden])")
                first = time.monotonic() - begun
                page.click("#cancel-current")
                pressed = time.monotonic()
                page.wait_for_selector("#status[data-state=ready]")
                print(f"run {i}: first estimates after {first:.2f} s, cancelled in {time.monotonic() - pressed:.2f} s")
            measure_stroke(page, 4000, 3000)
            measure_stroke(page, 6000, 4000)
        finally:
            studio.terminate()
            studio.wait()
            browser.close()


if __name__ == "__main__":
    main()
