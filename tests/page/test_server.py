"""The server of the page: what it takes, what it serves, and that it names no other host."""

import re

import pytest
from helpers import bomb
from page_helpers import noisy_png, require

require("gradio")

from starlette.testclient import TestClient  # noqa: E402

from sail_encoder.page import server  # noqa: E402
from sail_encoder.page.layout import UPLOAD_LIMIT  # noqa: E402
from sail_encoder.page.server import build_server  # noqa: E402

HOST = "http://127.0.0.1"


@pytest.fixture(scope="module")
def client(page):
    with TestClient(build_server(page), base_url=HOST) as client:
        yield client


def test_the_page_names_no_other_host(client):
    answer = client.get("/")
    assert answer.status_code == 200
    hosts = {url for url in re.findall(r"https?://[^\"'\s<\\]*", answer.text) if not url.startswith(HOST)}
    assert hosts == set()
    styles = re.findall(r'href="(\./[^"]*\.css)"', answer.text)
    assert styles
    for style in styles:
        assert not re.search(r"(url\(|@import)\W*(https?:)?//", client.get(style[1:]).text)


def test_browsers_are_told_to_ask_no_other_host(client):
    policy = client.get("/").headers["content-security-policy"]
    sources = {source for part in policy.split(";") for source in part.split()[1:]}
    assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}


def test_nothing_is_sent_to_gradio(client):
    assert '"analytics_enabled":false' in client.get("/").text


def test_an_upload_gives_a_token(client, page):
    answer = client.post("/photos", params={"name": "a.png"}, content=noisy_png(5))
    assert answer.status_code == 200
    assert page.photos.get(answer.json()["token"]).name == "a.png"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image", "a.png: not an image that Pillow can read"),
        (noisy_png()[:500], "a.png: cannot be decoded"),
        (bomb(), "a.png: more than 178956970 pixels"),
        (b"", "a.png: not an image that Pillow can read"),
    ],
    ids=["text", "cut off", "bomb", "empty"],
)
def test_what_is_no_image_is_refused_in_one_line(client, content, reason):
    answer = client.post("/photos", params={"name": "a.png"}, content=content)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(reason)


def test_an_image_that_memory_cannot_hold_says_so(client, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(server, "Photo", fail)
    answer = client.post("/photos", params={"name": "a.png"}, content=noisy_png())
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("a.png: the memory of this machine is not enough")


def test_a_file_that_is_too_large_is_refused(client):
    answer = client.post("/photos", params={"name": "a.png"}, content=b"x" * (UPLOAD_LIMIT + 1))
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("a.png: larger than 20 MiB")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_pages_of_other_sites_cannot_upload(client, page, site):
    """Nor those that another port of this machine serves."""
    before = page.photos.nbytes
    answer = client.post("/photos", content=noisy_png(6), headers={"sec-fetch-site": site})
    assert answer.status_code == 403
    assert page.photos.nbytes == before


def test_another_name_for_this_machine_is_refused(client):
    assert client.get("/", headers={"host": "example.com"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200


@pytest.mark.parametrize("path", ["upload", "file=/etc/hostname", "file/etc/hostname", "proxy=http://example.com/"])
def test_files_of_this_machine_have_no_address(client, path):
    assert client.get(f"/gradio_api/{path}").status_code == 404
    assert client.post(f"/gradio_api/{path}").status_code == 404


def test_what_gradio_adds_for_social_networks_is_found():
    tags = (
        b'<meta\n\tproperty="og:image"\n\tcontent="https://a.example/b.jpg"\n/><link rel="x" href="https://c.example">'
    )
    kept = b'<meta charset="utf-8" /><link rel="stylesheet" href="./assets/a.css"><script src="./a.js"></script>'
    assert server._FOREIGN_TAG.sub(b"", tags + kept + b'<script async src="https://d.example/e.js"></script>') == kept
