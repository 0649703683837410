"""An interactive conversation in a terminal."""

import signal
import sys
import threading
from collections.abc import Callable

from transformers import TextStreamer

from sail_encoder.chat.conversation import Chat
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.video import FRAMES
from sail_encoder.io.errors import UserError
from sail_encoder.io.signals import Interrupt

HELP = (
    "ask anything; /image PATH shows an image, /video PATH a video, /reset starts over, /quit or Ctrl-D ends, "
    "Ctrl-C stops an answer"
)
_TERMINATED = 128 + signal.SIGTERM


class _AnswerStreamer(TextStreamer):
    """Prints an answer without the space that its first token begins with, and says so where it was stopped."""

    begun = False

    def __init__(self, chat: Chat, stop: threading.Event) -> None:
        super().__init__(chat.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stop = stop

    def stop_soon(self) -> None:
        """Ends the answer at its next token; the way to the first one can be long, so there a line says so."""
        self.stop.set()
        if not self.begun:
            print("\nstopping at the first token; once more to stop at once", file=sys.stderr)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end)
        if stream_end and self.stop.is_set():
            print("[stopped]", file=sys.stderr)


def converse(chat: Chat, sampling: Sampling, read: Callable[[str], str] = input, frames: int = FRAMES) -> int:
    """Talks until the input ends; mistakes are reported, Ctrl-C stops what was asked, and the conversation goes on.

    Args:
        chat: The conversation, which may have been shown an image already.
        sampling: How answers are chosen.
        read: Reads a line, showing what it is given.
        frames: How many frames of a video to take.

    Returns:
        Exit status: 0, or 143 where SIGTERM ended an answer.
    """
    print(HELP, file=sys.stderr)
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return 0
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends", file=sys.stderr)
            continue
        if line == "/quit":
            return 0
        try:
            status = _respond(chat, sampling, line, frames)
        except UserError as error:
            print(f"sail: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n[stopped]", file=sys.stderr)
        else:
            if status == _TERMINATED:
                return status


def _respond(chat: Chat, sampling: Sampling, line: str, frames: int) -> int:
    """Does what a line asks for; returns 0, or 130 or 143 where a signal ended an answer."""
    command, _, argument = line.partition(" ")
    path = argument.strip().strip("'\"")
    if command == "/image":
        chat.look(path)
        print("looking at it", file=sys.stderr)
    elif command == "/video":
        chat.watch(path, frames)
        print("watched it", file=sys.stderr)
    elif command == "/reset":
        chat.reset()
        print("starting over", file=sys.stderr)
    elif command.startswith("/"):
        raise UserError(f"no command {command}; {HELP}")
    elif line:
        return answer_streamed(chat, line, sampling)
    return 0


def answer_streamed(chat: Chat, prompt: str, sampling: Sampling) -> int:
    """Prints an answer as it comes; Ctrl-C ends it where it is, and it stays part of the conversation.

    Returns:
        Exit status: 0, or 130 or 143 where a signal ended the answer.
    """
    stop = threading.Event()
    streamer = _AnswerStreamer(chat, stop)
    with Interrupt(streamer.stop_soon, notice="", ends_process=False) as interrupt:
        chat.ask(prompt, sampling=sampling, streamer=streamer, stop=stop)
    return interrupt.status
