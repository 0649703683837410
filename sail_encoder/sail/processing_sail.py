"""Conversations with images to what `SailForCausalLM` takes, as a transformers processor."""

import re
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sail_encoder.sail.image_processing_sail import SailImageProcessor
from sail_encoder.sail.positions import Grid, as_grids

PLACEHOLDER = re.compile("(?:<vision>)?<vpatch>(?:</vision>)?")
"""What stands for an image in a text before its size is known: `<vpatch>`, with or without its delimiters."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set part = namespace(images='', text='') -%}
{%- if message.content is string -%}
{%- set part.text = message.content -%}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}{%- set part.images = part.images + '<vision><vpatch></vision>' -%}
{%- elif item.type == 'text' -%}{%- set part.text = part.text + item.text -%}
{%- else -%}{{ raise_exception('SAIL reads text and images, not ' + item.type) }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'user' -%}
{{ part.images }}{% if loop.first %}{{ bos_token }}{% endif %}{{ '[INST] ' + part.text + ' [/INST]' }}
{%- elif message.role == 'assistant' -%}
{{ part.text + eos_token }}
{%- else -%}
{{ raise_exception('SAIL knows the roles user and assistant, not ' + message.role) }}
{%- endif -%}
{%- endfor -%}"""
"""The published format: an image before `<s>`, `<s>` in the first turn alone, answers closed with `</s>`."""


class SailProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of `SailProcessor`."""

    _defaults = {"text_kwargs": {"padding": False}}


class SailProcessor(ProcessorMixin):
    """A `SailImageProcessor` and a tokenizer, and the chat format of SAIL.

    Args:
        image_processor: Cuts images into patches.
        tokenizer: With the tokens `<vision>`, `<vpatch>` and `</vision>`.
        chat_template: Jinja template of a conversation.
    """

    def __init__(
        self,
        image_processor: SailImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = CHAT_TEMPLATE,
        **kwargs: Any,
    ) -> None:
        self.image_token = "<vpatch>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[SailProcessorKwargs],
    ) -> BatchFeature:
        """Processes images, text with images, or text alone.

        Args:
            images: All images in the order in which they appear in the texts.
            text: One prompt or several, with `<vision><vpatch></vision>` for an image, as `apply_chat_template` writes.
            kwargs: Options of the image processor and the tokenizer, `padding` and `return_tensors` among them.

        Returns:
            `input_ids` and `attention_mask` [prompts, length], `pixel_values` [total patches, 3 * patch_size**2] and
            `image_grid_hw` [images, 2], as far as there is text or images.

        Raises:
            ValueError: If the texts do not hold as many images as there are.
        """
        options = self._merge_kwargs(SailProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        grids: list[Grid] = []
        if images is not None:
            flat = make_flat_list_of_images(self.image_processor.fetch_images(images))
            data |= self.image_processor(flat, **{**options["images_kwargs"], "return_tensors": "np"})
            grids = as_grids(data["image_grid_hw"])
        if text is not None:
            texts = expand_images([text] if isinstance(text, str) else list(text), grids)
            data |= self._encode(texts, dict(options["text_kwargs"]))
        return BatchFeature(data, tensor_type=options["text_kwargs"].get("return_tensors"))

    def _encode(self, texts: list[str], options: dict[str, Any]) -> dict[str, Any]:
        options.pop("return_tensors", None)
        padding = options.pop("padding", False)
        rows = [self.token_ids(text) for text in texts]
        limit = options.get("max_length")
        if options.get("truncation") and limit is not None and max(map(len, rows)) > limit:
            raise ValueError(
                f"a prompt of {max(map(len, rows))} tokens cannot be cut to {limit} without harming images"
            )
        return dict(self.tokenizer.pad({"input_ids": rows}, padding=padding, max_length=limit))

    def token_ids(self, text: str) -> list[int]:
        """Tokenizes turn by turn, as in training: what follows a marker is tokenized as a text of its own."""
        markers = ("</vision>", self.tokenizer.bos_token, "[/INST]", self.tokenizer.eos_token)
        pieces = re.split("|".join(f"(?<={re.escape(marker)})" for marker in markers), text)
        encoded = self.tokenizer([piece for piece in pieces if piece], add_special_tokens=False, verbose=False)
        return [token for piece in encoded["input_ids"] for token in piece]

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        patches = [self.image_processor.get_number_of_image_patches(*size, kwargs) for size in image_sizes or []]
        return MultiModalData(num_image_tokens=[count + 2 for count in patches], num_image_patches=patches)

    @property
    def model_input_names(self) -> list[str]:
        """Everything that a call can return."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]


def expand_images(texts: list[str], grids: list[Grid]) -> list[str]:
    """Puts as many `<vpatch>` into each placeholder as its image has patches."""
    expected = sum(len(PLACEHOLDER.findall(text)) for text in texts)
    if expected != len(grids):
        raise ValueError(
            f"the text holds {expected} images (<vpatch>), but {len(grids)} were given; write prompts with "
            "apply_chat_template"
        )
    remaining = iter(grids)

    def expand(_: re.Match[str]) -> str:
        rows, columns = next(remaining)
        return f"<vision>{'<vpatch>' * (rows * columns)}</vision>"

    return [PLACEHOLDER.sub(expand, text) for text in texts]
