"""The pictures of docs/studio.md: python docs/studio_pictures.py http://127.0.0.1:7860/

A studio of the model `scenes` runs at the address; Chromium and the package playwright are installed.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parent
INPUTS = DOCS.parent / "inputs"
PATIENCE = 900_000  # milliseconds


def open_page(browser: Browser, address: str, **context) -> Page:
    """The page with the coffee on the wooden table."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector("#settings-fields .field", state="attached")
    page.wait_for_selector("#status[data-state=ready]")
    page.set_input_files("#photo-file", INPUTS / "img.png")
    page.wait_for_selector("body:not(.empty)")
    return page


def keep(page: Page, name: str) -> None:
    """A screenshot as a JPEG small enough for the repository."""
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    image.save(DOCS / name, quality=88, optimize=True)


def paint(page: Page, *points: tuple[float, float]) -> None:
    """A stroke; points are shares of the canvas."""
    box = page.locator("#viewport").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=12)
    page.mouse.up()


def main(address: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = open_page(browser, address, viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.set_input_files("#mask-file", INPUTS / "donut_mask.png")
        page.fill("#prompt", "a white donut on a plate")
        page.fill("#seed", "42")
        page.click("#lock")
        page.wait_for_timeout(500)
        keep(page, "studio.jpg")
        page.fill("#prompt", "a white donut")
        page.click("#run")
        page.wait_for_selector("#tag:not([hidden])")
        while int((page.inner_text("#progress-text").split(" of ")[0].split() or ["0"])[-1] or 0) < 20:
            page.wait_for_timeout(200)
        keep(page, "studio_forming.jpg")
        page.wait_for_selector("#use:not([disabled])")
        page.click("#slide")
        page.wait_for_timeout(500)
        keep(page, "studio_result.jpg")
        page.click("#use")
        page.wait_for_selector('#steps li:nth-child(2) .step[aria-current="true"]')
        page.emulate_media(color_scheme="dark")
        page.keyboard.press("b")
        paint(page, (0.38, 0.62), (0.44, 0.68), (0.4, 0.7))
        page.fill("#prompt", "a furry purple star")
        page.click("#run")
        page.wait_for_selector("#use:not([disabled])")
        page.click("#use")
        page.wait_for_selector('#steps li:nth-child(3) .step[aria-current="true"]')
        page.click("#jobs .job")
        page.wait_for_selector("#use:not([disabled])")
        page.wait_for_timeout(4000)
        keep(page, "studio_session.jpg")
        phone = open_page(
            browser,
            address,
            viewport={"width": 360, "height": 740},
            has_touch=True,
            is_mobile=True,
            device_scale_factor=2,
        )
        phone.set_input_files("#mask-file", INPUTS / "donut_mask.png")
        phone.fill("#prompt", "a white donut")
        phone.wait_for_timeout(500)
        phone.evaluate("() => window.scrollTo(0, 0)")
        phone.wait_for_timeout(300)
        keep(phone, "studio_phone.jpg")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
