"""An interactive conversation in a terminal."""

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from transformers import TextStreamer

from sail_encoder.chat.conversation import Chat
from sail_encoder.chat.engine import Answer
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.video import FRAMES
from sail_encoder.io.errors import UserError
from sail_encoder.io.refusals import explain_refusals
from sail_encoder.io.signals import Interrupt
from sail_encoder.pictures.mask_files import count_masks, next_folder, write_masks

HELP = (
    "ask anything; /image PATH shows an image, /video PATH a video, /reset starts over, /quit or Ctrl-D ends, "
    "Ctrl-C stops an answer"
)
_TERMINATED = 128 + signal.SIGTERM


class _AnswerStreamer(TextStreamer):
    """Prints an answer without the space that its first token begins with, and says so where it was stopped."""

    begun = False

    def __init__(self, chat: Chat, stop: threading.Event) -> None:
        # It only decodes, and what is shown of an answer, the engine knows.
        super().__init__(chat.engine, skip_prompt=True)
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


def converse(
    chat: Chat,
    sampling: Sampling,
    read: Callable[[str], str] = input,
    frames: int = FRAMES,
    masks: Path | None = None,
) -> int:
    """Talks until the input ends; mistakes are reported, Ctrl-C stops what was asked, and the conversation goes on.

    Args:
        chat: The conversation, which may have been shown an image already.
        sampling: How answers are chosen.
        read: Reads a line, showing what it is given.
        frames: How many frames of a video to take.
        masks: Folder for the masks of answers, each in a new folder of its own in it, 1, 2 and so on.

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
            status = _respond(chat, sampling, line, frames, None if masks is None else next_folder(masks))
        except UserError as error:
            print(f"sail: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n[stopped]", file=sys.stderr)
        else:
            if status == _TERMINATED:
                return status


def _respond(chat: Chat, sampling: Sampling, line: str, frames: int, masks: Path | None) -> int:
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
        return answer_streamed(chat, line, sampling, masks)
    return 0


def answer_streamed(chat: Chat, prompt: str, sampling: Sampling, masks: Path | None = None) -> int:
    """Prints an answer as it comes; Ctrl-C ends it where it is, and it stays part of the conversation.

    Args:
        chat: The conversation.
        prompt: The question.
        sampling: How the answer is chosen.
        masks: Folder for the masks of the answer.

    Returns:
        Exit status: 0, or 130 or 143 where a signal ended the answer.
    """
    stop = threading.Event()
    streamer = _AnswerStreamer(chat, stop)
    with Interrupt(streamer.stop_soon, notice="", ends_process=False) as interrupt:
        answer = chat.ask(prompt, sampling=sampling, streamer=streamer, stop=stop)
    if len(answer.masks):
        _keep_masks(answer, prompt, masks)
    return interrupt.status


def _keep_masks(answer: Answer, prompt: str, folder: Path | None) -> None:
    """Writes the masks of an answer, and says where they are, or how to get them."""
    masks = count_masks(len(answer.masks))
    if folder is None:
        print(f"{masks}; --masks DIR writes them", file=sys.stderr)
        return
    with explain_refusals(folder, "name another folder with --masks"):
        write_masks(folder, answer.masks, {"prompt": prompt, "answer": answer.text})
    print(f"wrote {folder}: {masks}", file=sys.stderr)
