"""The page in a browser: what visitors do, from the upload to the answer, on narrow and wide windows."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import bomb
from page_helpers import find_chromium, noisy_png, require

require("gradio")
sync_api = require("playwright.sync_api")
expect = sync_api.expect

ROOT = Path(__file__).parents[2]
SECONDS = 20
expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="module")
def address(head):
    """Address of a page that was started as people start it."""
    find_chromium()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--page", "--port", str(port), "--model", "sail-tiny,raw/14", "--head", str(head)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sail_cli", "demo", *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            while not lines or "the page is at" not in lines[-1]:
                line = server.stderr.readline()
                assert line, "".join(lines)
                lines.append(line)
            yield _answering(f"http://127.0.0.1:{port}")
            server.send_signal(signal.SIGINT)
            # Ctrl-C ends it at once, although browsers hold connections, and with nothing more to say.
            assert server.wait(10) == 130
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


def _answering(address):
    for _ in range(100):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return address
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # A container has no sandbox to offer, and the page is our own.
        started = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def context(browser):
    """What one person's windows share: scripts and styles, which are loaded once."""
    return browser.new_context()


@pytest.fixture
def visit(context, address):
    """Opens the page in a new window; in the end, no request has gone to another host and nothing has failed."""
    pages, foreign, errors = [], [], []

    def open_page(width=1300, height=1000, context=context):
        page = context.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(SECONDS * 1000)
        ours = (address, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(ours) or foreign.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda answer: answer.status >= 500 and errors.append(answer.url))
        page.goto(address)
        page.locator("#similarity img").wait_for()
        return page

    yield open_page
    for page in pages:
        page.close()
    assert foreign == []
    assert errors == []


def wait_for_alt(page, name, pattern):
    expect(page.locator(f"#{name} img")).to_have_attribute("alt", re.compile(pattern))


def upload(page, name, content, where="first"):
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.locator(f"#{where}-upload input").set_input_files(file)


def open_tab(page, label):
    page.get_by_role("tab", name=label, exact=True).click()


def test_an_upload_is_shown_and_a_click_shows_its_similarity(visit):
    page = visit()
    upload(page, "mine.png", noisy_png(1))
    wait_for_alt(page, "photo", "^mine.png, 10 rows and 14 columns")
    photo = page.locator("#photo img")
    box = photo.bounding_box()
    photo.click(position={"x": box["width"] * 0.99, "y": box["height"] * 0.05})
    wait_for_alt(
        page, "similarity", "^Similarity of all patches of mine.png to the one in row 0, column 13, at layer 5"
    )
    assert page.locator("#row input").input_value() == "0"
    assert page.locator("#column input").input_value() == "13"
    mark, photo_box = page.locator("#photo .mark").bounding_box(), photo.bounding_box()
    assert mark["x"] + mark["width"] == pytest.approx(photo_box["x"] + photo_box["width"], abs=1)
    assert mark["y"] == pytest.approx(photo_box["y"], abs=1)


def test_a_patch_is_chosen_with_the_keyboard(visit):
    page = visit()
    page.locator("#photo [role=application]").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_alt(page, "similarity", "row 6, column 8,")
    page.keyboard.press("ArrowUp")
    wait_for_alt(page, "similarity", "row 5, column 8,")
    page.locator("#row input").fill("11")
    wait_for_alt(page, "similarity", "row 11, column 8,")
    wait_for_alt(page, "photo", "row 11, column 8 is chosen$")
    page.locator("#column input").fill("99")
    expect(page.get_by_role("alert")).to_contain_text("columns from 0 to 18")
    page.locator("#column input").fill("3")
    wait_for_alt(page, "similarity", "row 11, column 3,")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_slider_shows_another_layer(visit):
    page = visit()
    open_tab(page, "PCA")
    wait_for_alt(page, "components", "at layer 5")
    before = page.locator("#components img").get_attribute("src")
    page.locator("#layer input[type=range]").focus()
    page.keyboard.press("Home")
    wait_for_alt(page, "components", "at layer 0")
    assert page.locator("#components img").get_attribute("src") != before
    open_tab(page, "Similarity")
    wait_for_alt(page, "similarity", "at layer 0")


def test_an_image_is_matched_with_a_second(visit):
    page = visit()
    open_tab(page, "Matches")
    wait_for_alt(page, "matches", "patches of China and Flower")
    upload(page, "other.png", noisy_png(2), "second")
    wait_for_alt(page, "matches", "patches of China and other.png")
    page.locator("#second").get_by_role("button", name="Scene").click()
    wait_for_alt(page, "matches", "patches of China and Scene")


def about_the_scene(page, question):
    """Writes a question about the drawn scene."""
    page.locator("#first").get_by_role("button", name="Scene").click()
    wait_for_alt(page, "photo", "^Scene")
    open_tab(page, "Chat")
    page.locator("#question textarea").fill(question)


def test_an_answer_about_the_image_streams_in(visit):
    page = visit()
    about_the_scene(page, "Describe the image.")
    page.evaluate(
        """() => { window.seen = new Set(); new MutationObserver(() => {
            const said = document.querySelector('#conversation [data-testid=bot]');
            if (said) window.seen.add(said.innerText.trim());
        }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    page.get_by_role("button", name="Ask").click()
    answer = page.locator("#conversation [data-testid=bot]")
    expect(answer).to_contain_text(re.compile("circle.* and a .*"))
    assert page.evaluate("window.seen.size") > 2
    page.locator("#question textarea").fill("How many things are there?")
    page.keyboard.press("Enter")
    expect(answer).to_have_count(2)


def test_an_answer_shows_its_masks(visit):
    page = visit()
    about_the_scene(page, "Please segment all things in this image.")
    page.get_by_role("button", name="Ask").click()
    wait_for_alt(page, "chat", "Masks of the answer over Scene: 1, of [0-9]+% of its pixels")
    page.locator("#question textarea").fill("How many things are there?")
    page.keyboard.press("Enter")
    expect(page.locator("#chat img")).to_have_count(0)


def test_another_model_is_chosen_and_says_that_it_cannot_chat(visit):
    page = visit()
    page.locator("#model input").click()
    page.get_by_role("option", name="raw/14").click()
    expect(page.locator("#about")).to_contain_text("raw/14: 0 million parameters")
    wait_for_alt(page, "similarity", "at layer 0")
    expect(page.locator("#layer")).to_be_hidden()
    open_tab(page, "Chat")
    page.locator("#question textarea").fill("What is it?")
    told = page.get_by_role("alert").first
    for _ in range(4):  # a key is lost that comes before the page listens to a tab which it has just drawn
        page.locator("#question textarea").press("Enter")
        with suppress(sync_api.TimeoutError):
            told.wait_for(timeout=5000)
            break
    expect(told).to_contain_text("raw/14 has no language model")


def test_the_head_finds_its_classes(visit):
    page = visit()
    open_tab(page, "Classes")
    wait_for_alt(page, "segmentation", "^Classes that the head finds in China: .*(leaf|petal|sky)")


def test_what_cannot_be_used_says_so_and_the_page_goes_on(visit, tmp_path):
    page = visit()
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * (20 * 2**20 + 1))
    upload(page, "broken.png", noisy_png()[:400])
    expect(page.get_by_role("alert")).to_contain_text("broken.png: cannot be decoded")
    upload(page, "bomb.png", bomb())
    expect(page.get_by_role("alert")).to_contain_text("bomb.png: more than 178956970 pixels")
    page.locator("#first-upload input").set_input_files(large)
    expect(page.get_by_role("alert")).to_contain_text("large.png: larger than 20 MiB")
    assert page.locator("#photo img").get_attribute("alt").startswith("China")
    upload(page, "good.png", noisy_png(4))
    wait_for_alt(page, "photo", "^good.png")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_two_visitors_do_not_see_each_other(visit, browser):
    one, two = visit(), visit(context=browser.new_context())
    upload(one, "first.png", noisy_png(11))
    upload(two, "second.png", noisy_png(12))
    wait_for_alt(one, "similarity", "patches of first.png")
    wait_for_alt(two, "similarity", "patches of second.png")
    for page, other in ((one, "second.png"), (two, "first.png")):
        page.locator("#row input").fill("2")
        wait_for_alt(page, "similarity", "row 2,")
        for label in ("PCA", "Matches", "Similarity"):
            open_tab(page, label)
        assert other not in page.content()


@pytest.mark.parametrize("width", [400, 1300])
def test_the_page_fits_its_window(visit, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for label in ("PCA", "Matches", "Chat", "Classes", "Similarity"):
        open_tab(page, label)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    photo, tabs = (page.locator(name).bounding_box() for name in ("#photo img", "#tabs"))
    # Beside each other where there is room, and else one below the other.
    assert (tabs["x"] >= photo["x"] + photo["width"]) == (width == 1300)
    assert (tabs["y"] >= photo["y"] + photo["height"]) == (width == 400)


def test_every_picture_and_field_has_a_name(visit):
    page = visit()
    for label in ("PCA", "Matches", "Chat", "Classes"):
        open_tab(page, label)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('img, input, textarea, button')].filter(element =>
            element.checkVisibility() && !(element.alt || element.ariaLabel || element.innerText.trim() ||
            element.title || [...(element.labels || [])].some(label => label.innerText.trim()))
        ).map(element => element.outerHTML)"""
    )
    assert nameless == []
