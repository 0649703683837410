"""Screenshots of the page for docs/pictures: the page is started, looked at in Chromium, and photographed.

python -m tools.page_pictures        # needs the extra dev and Chromium
"""

import io
import shutil
from typing import Any

from PIL import Image

from benchmarks.page import serve

_COLORS = 256
"""Colors of a screenshot, with which it is a third of its size and looks the same."""


def main() -> None:
    """Writes page.png, with a chosen patch, and page_chat.png, with a conversation in a narrow window."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with serve("sail-tiny") as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        _save(_similarity(browser, address), "page.png")
        _save(_conversation(browser, address), "page_chat.png")
        browser.close()


def _similarity(browser: Any, address: str) -> bytes:
    page = _look_at_scene(browser, address, 1200)
    page.locator("#row input").fill("2")
    page.locator("#similarity img[alt*='row 2']").wait_for()
    page.locator("#column input").fill("12")
    page.locator("#similarity img[alt*='column 12']").wait_for()
    return bytes(page.screenshot(full_page=True))


def _conversation(browser: Any, address: str) -> bytes:
    page = _look_at_scene(browser, address, 420)
    page.get_by_role("tab", name="Chat").click()
    for question in ("Describe the image.", "What color is the ring?"):
        page.locator("#question textarea").fill(question)
        page.keyboard.press("Enter")
        page.wait_for_timeout(3000)
    return bytes(page.screenshot(full_page=True))


def _look_at_scene(browser: Any, address: str, width: int) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.goto(address)
    page.locator("#similarity img").wait_for()
    page.locator("#first").get_by_role("button", name="Scene").click()
    page.locator("#photo img[alt^='Scene']").wait_for()
    return page


def _save(screenshot: bytes, name: str) -> None:
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    picture.quantize(_COLORS, kmeans=2, dither=Image.Dither.NONE).save(name, optimize=True)


if __name__ == "__main__":
    main()
