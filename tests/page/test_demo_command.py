"""`sail demo`: what it refuses before anything is loaded."""

import importlib.util
import socket

import pytest
from page_helpers import require

from evals.commands.demo import demo
from sail_cli import main
from sail_encoder.io.errors import UserError


@pytest.fixture
def without_gradio(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find_spec(name, *rest)
    )


def test_without_gradio_one_line_says_what_to_install(without_gradio, capsys):
    assert main(["demo", "--page"]) == 2
    assert capsys.readouterr().err == "sail: sail demo --page needs gradio; pip install gradio\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "sail-tiny"], "--model sail-tiny is for the page; add --page, or leave it out"),
        (["--port", "7000"], "--port 7000 is for the page; add --page, or leave it out"),
        (["--page", "--out", "here"], "--out here has no effect with --page, which writes nothing; leave one out"),
    ],
)
def test_options_that_nothing_would_read_are_refused(options, reason, capsys):
    assert main(["demo", *options]) == 2
    assert capsys.readouterr().err == f"sail: {reason}\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"port": 0}, "--port cannot be 0; allowed is 1 to 65535"),
        ({"head": "nowhere"}, "nowhere"),
        ({"model": "timm/no_such_model"}, "no_such_model"),
        ({"host": "192.0.2.1"}, r"--host 192\.0\.2\.1 --port 7860 cannot be used .*; try another"),
        ({"host": "no..name"}, r"--host no\.\.name --port 7860 cannot be used .*; try another"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_line(options, reason):
    require("gradio")
    with pytest.raises(ValueError, match=reason) as raised:
        demo(page=True, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(host, family, monkeypatch):
    require("gradio")
    from sail_encoder.page.encodings import Encoder

    monkeypatch.setattr(Encoder, "load", lambda *_: pytest.fail("a model was loaded"))
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host {host} --port {port} cannot be used \(Address already in use\);"):
            demo(page=True, host=host, port=port)


def test_another_host_is_warned_of(monkeypatch, capsys):
    require("gradio")
    from sail_encoder.page import server

    monkeypatch.setattr(server, "serve_page", lambda page, host, place: print(host, *place.getsockname()))
    assert demo(page=True, host="0.0.0.0", port=7999) == 0
    said = capsys.readouterr()
    assert said.out == "0.0.0.0 0.0.0.0 7999\n"
    assert "warning: --host 0.0.0.0 lets everybody who reaches this machine use the page" in said.err
