"""Conversations at a terminal: streaming, commands and signals."""

import os
import signal
from contextlib import contextmanager

import pytest
from chat_helpers import SHORT, scene
from PIL import Image

from sail_encoder.chat.terminal import answer_streamed, converse


def test_answers_stream_and_stop(chat, capsys):
    chat.look(scene())
    answer_streamed(chat, "Describe the image.", SHORT)
    assert capsys.readouterr().out.strip() == chat.messages[-1]["content"][0]["text"]


def test_interrupted_answers_stay_part_of_the_conversation(chat, capsys):
    chat.look(scene())
    tokens = []
    head = chat.model.lm_head

    def interrupt(module, args, logits):
        tokens.append(1)
        if len(tokens) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    hook = head.register_forward_hook(interrupt)
    answer_streamed(chat, "Describe the image.", SHORT)
    hook.remove()
    captured = capsys.readouterr()
    assert "[stopped]" in captured.err
    assert len(chat.messages[-1]["content"][0]["text"].split()) <= 4
    assert chat.ask("What color is it?", sampling=SHORT)


def test_interactive_conversation(chat, capsys, tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    lines = [
        f"/image {tmp_path / 'a.png'}",
        "What color is it?",
        "",
        "/nonsense",
        "/image nowhere.png",
        "How big is it?",
    ]
    inputs = iter([*lines, "/reset", "/quit"])
    assert converse(chat, SHORT, lambda prompt: next(inputs)) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "no command /nonsense" in captured.err
    assert "no such file" in captured.err
    assert chat.messages == []


@pytest.fixture(autouse=True)
def as_at_a_terminal():
    """Ctrl-C raises; a shell lets what it starts in the background, such as these tests, ignore it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@contextmanager
def signal_at(module, call, number):
    """A signal that comes while a module computes, at which call of it, from one on."""
    counted = []

    def send(_, args, output):
        counted.append(1)
        if len(counted) == call:
            signal.raise_signal(number)

    hook = module.register_forward_hook(send)
    try:
        yield
    finally:
        hook.remove()


def test_a_question_that_is_interrupted_twice_leaves_the_conversation_as_it_was(chat, capsys):
    chat.ask("What color is it?", scene(5), SHORT)
    before = list(chat.conversation.ids)
    inputs = iter(["How big is it?", "/quit"])
    first, second = chat.model.model.layers[:2]
    with signal_at(first, 1, signal.SIGINT), signal_at(second, 1, signal.SIGINT):
        assert converse(chat, SHORT, lambda prompt: next(inputs)) == 0
    captured = capsys.readouterr().err
    assert captured.index("stopping at the first token; once more") < captured.index("[stopped]")
    assert chat.conversation.ids == before
    assert len(chat.messages) == 2
    assert chat.ask("How big is it?", sampling=SHORT)


def test_an_image_whose_encoding_is_interrupted_is_not_shown(chat, capsys, tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    inputs = iter([f"/image {tmp_path / 'a.png'}", "/quit"])
    with signal_at(chat.model.model.vis_embed, 1, signal.SIGINT):
        assert converse(chat, SHORT, lambda prompt: next(inputs)) == 0
    captured = capsys.readouterr().err
    assert "[stopped]" in captured
    assert "looking at it" not in captured
    assert chat.conversation.shown == []


def test_a_request_to_end_ends_the_conversation_behind_the_answer(chat, capsys):
    inputs = iter(["Describe the image.", "What color is it?"])
    with signal_at(chat.model.lm_head, 2, signal.SIGTERM):
        assert converse(chat, SHORT, lambda prompt: next(inputs)) == 143
    assert len(chat.messages) == 2
    assert "[stopped]" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [EOFError, KeyboardInterrupt])
def test_ends_of_input(chat, ending):
    def read(prompt, state=[]):  # noqa: B006 - remembers between calls
        state.append(1)
        raise ending if len(state) == 1 else EOFError

    assert converse(chat, SHORT, read) == 0
