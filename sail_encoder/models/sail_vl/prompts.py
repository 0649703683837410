"""Texts of SAIL-VL's conversations, to the letter of the published `chat`.

Two traps: the template in the published tokenizer_config.json is Qwen's, and the one that comes with SAIL-VL2 writes
tokens that its tokenizer does not have. Neither is what `chat` uses, and neither is used here. Unlike Qwen's, a turn
ends with `<|im_end|>` and no line break.
"""

from collections.abc import Iterator, Sequence

from sail_encoder.io.errors import UserError
from sail_encoder.models.sail_vl.published import IMAGE_TOKEN

IMAGE = "<image>"
"""Placeholder of an image in a text, before its number of tiles is known."""

SYSTEM_TEXT = "你是由抖音内容理解组开发的多模态大模型，英文名叫UniVL, 是一个有用无害的人工智能助手。"  # noqa: RUF001
"""System text of both published formats, `sailvl-chat` and `univl-chat`."""

THINKING_REQUEST = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The "
    "reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \\boxed{}."
)
"""Request to the thinking models that follows the question and a space."""

CHAT_TEMPLATE = (
    """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\n"""
    + SYSTEM_TEXT
    + """<|im_end|>' }}
{%- endif -%}
{%- for message in messages -%}
{%- set part = namespace(text='') -%}
{%- if message.content is string -%}
{%- set part.text = message.content -%}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}{%- set part.text = part.text + '<image>\\n' -%}
{%- elif item.type == 'text' -%}{%- set part.text = part.text + item.text -%}
{%- else -%}{{ raise_exception('SAIL-VL reads text and images, not ' + item.type) }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' }}{% generation %}{{ part.text + '<|im_end|>' }}{% endgeneration %}
{%- elif message.role in ('system', 'user') -%}
{{ '<|im_start|>' + message.role + '\\n' + part.text + '<|im_end|>' }}
{%- else -%}
{{ raise_exception('SAIL-VL knows the roles system, user and assistant, not ' + message.role) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}"""
)
"""Jinja template of a conversation; a message is a text with `<image>` in it, or a list of images and texts."""


def prepend_images(question: str, images: int) -> str:
    """Puts images in front of a question, unless it says itself where they belong.

    One image is `<image>` on a line of its own, as in the published `chat`; several are `Image-1: <image>` and so on,
    as in the authors' evaluation.
    """
    if IMAGE in question or not images:
        return question
    return f"{IMAGE}\n{question}" if images == 1 else _numbered("Image", images) + question


def prepend_frames(question: str, frames: int) -> str:
    """Puts the frames of a video in front of a question, each an image of one tile, as in the authors' evaluation."""
    return question if IMAGE in question else _numbered("Frame", frames) + question


def request_thinking(question: str) -> str:
    """Words a question as the thinking models are asked it."""
    return f"{question} {THINKING_REQUEST}"


def _numbered(word: str, count: int) -> str:
    return "".join(f"{word}-{number}: {IMAGE}\n" for number in range(1, count + 1))


def expand_images(texts: Sequence[str], tiles: Sequence[int], tokens_per_tile: int) -> list[str]:
    """Writes `<img>`, the tokens of all tiles and `</img>` for each `<image>`.

    Args:
        texts: Prompts with `<image>` for each image.
        tiles: Number of tiles of each image, in the order in which they appear.
        tokens_per_tile: How many `<IMG_CONTEXT>` a tile takes.

    Raises:
        UserError: If the texts do not hold as many images as there are, or hold `<IMG_CONTEXT>` already.
    """
    held = sum(text.count(IMAGE) for text in texts)
    if held != len(tiles):
        raise UserError(f"the text holds {held} images ({IMAGE}), but {len(tiles)} were given")
    if any(IMAGE_TOKEN in text for text in texts):
        raise UserError(f"the text holds {IMAGE_TOKEN}, which stands for parts of images; write {IMAGE} for an image")
    counts = iter(tiles)
    return ["".join(_expand(text, counts, tokens_per_tile)) for text in texts]


def _expand(text: str, counts: Iterator[int], tokens_per_tile: int) -> Iterator[str]:
    head, *rest = text.split(IMAGE)
    yield head
    for piece in rest:
        yield f"<img>{IMAGE_TOKEN * (tokens_per_tile * next(counts))}</img>{piece}"
