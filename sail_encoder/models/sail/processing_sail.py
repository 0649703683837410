"""Turns conversations with images into what `SailForCausalLM` takes, as a transformers processor."""

import re
from collections.abc import Iterator
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from typing_extensions import Unpack

from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
from sail_encoder.models.sail.positions import Grid, as_grids

PLACEHOLDER = "<vision><vpatch></vision>"
"""What stands for an image in a text before its size is known."""

_ANY_PLACEHOLDER = re.compile("(?:<vision>)?<vpatch>(?:</vision>)?")

Span = tuple[int, int]
"""First character of a token in its text, and the one after its last."""

Tokenized = tuple[list[int], list[Span]]
"""Token ids of a text, and the characters that each stands for."""

CHAT_TEMPLATE = """\
{%- set heard = namespace(system='') -%}
{%- for message in messages -%}
{%- set part = namespace(images='', text='') -%}
{%- if message.content is string -%}
{%- set part.text = message.content -%}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' and part.text -%}
{{ raise_exception('SAIL never saw an image after text of its turn; put images first') }}
{%- elif item.type == 'image' -%}{%- set part.images = part.images + '<vision><vpatch></vision>' -%}
{%- elif item.type == 'text' -%}{%- set part.text = part.text + item.text -%}
{%- else -%}{{ raise_exception('SAIL reads text and images, not ' + item.type) }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'system' -%}
{%- set heard.system = part.text + '\\n\\n' -%}
{%- elif message.role == 'user' -%}
{{ part.images }}{% if not heard.user %}{{ bos_token }}{% endif -%}
{{ '[INST] ' + heard.system + part.text + ' [/INST]' }}
{%- set heard.user = true -%}{%- set heard.system = '' -%}
{%- elif message.role == 'assistant' -%}
{% generation %}{{ part.text + eos_token }}{% endgeneration %}
{%- else -%}
{{ raise_exception('SAIL knows the roles system, user and assistant, not ' + message.role) }}
{%- endif -%}
{%- endfor -%}"""
"""The published format: an image before `<s>`, `<s>` in the first turn alone, answers closed with `</s>`.

SAIL was trained without a system prompt; one is put before the next question, as Mistral's own templates do.
"""


class SailProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of `SailProcessor`. Prompts are padded on the left, so that answers of a batch start at one column."""

    _defaults = {"text_kwargs": {"padding": False, "padding_side": "left"}}


class SailProcessor(ProcessorMixin):
    """A `SailImageProcessor` and a tokenizer, and the chat format of SAIL.

    Args:
        image_processor: Cuts images into patches.
        tokenizer: With the tokens `<vision>`, `<vpatch>` and `</vision>`. Where it has no padding token, `</s>` becomes
            it; it is set to pad on the left.
        chat_template: Jinja template of a conversation.
    """

    valid_processor_kwargs = SailProcessorKwargs

    def __init__(
        self,
        image_processor: SailImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = CHAT_TEMPLATE,
        **kwargs: Any,
    ) -> None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # A tokenizer's file may say otherwise; both our own batches and those of transformers' pipeline go by this.
        tokenizer.padding_side = "left"
        self.image_token = "<vpatch>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[SailProcessorKwargs],  # type: ignore[misc]
    ) -> BatchFeature:
        """Processes images, text with images, or text alone.

        Args:
            images: All images in the order in which they appear in the texts.
            text: One prompt or several, with `<vision><vpatch></vision>` for an image, as `apply_chat_template` writes.
            kwargs: Options of the image processor and the tokenizer, `padding` and `return_tensors` among them.

        Returns:
            `input_ids` and `attention_mask` [prompts, length], `pixel_values` [total patches, 3 * patch_size**2] and
            `image_grid_hw` [images, 2]: the first two if there is text, the others if there are images.

        Raises:
            ValueError: If there is neither text nor image, or the texts do not hold as many images as there are.
        """
        if images is None and text is None:
            raise ValueError("there is nothing to process: give text, images or both")
        options = self._merge_kwargs(SailProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        grids: list[Grid] = []
        if images is not None:
            flat = make_flat_list_of_images(self.image_processor.fetch_images(images))
            data |= self.image_processor(flat, **{**options["images_kwargs"], "return_tensors": "np"})
            grids = as_grids(data["image_grid_hw"])
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            data |= self._encode(texts, grids, dict(options["text_kwargs"]))
        return BatchFeature(data, tensor_type=options["text_kwargs"].get("return_tensors"))

    def _encode(self, texts: list[str], grids: list[Grid], options: dict[str, Any]) -> dict[str, Any]:
        with_spans, limit = options.get("return_offsets_mapping", False), options.get("max_length")
        rows, spans = map(list, zip(*self.tokenize(texts, grids, with_spans), strict=True))
        longest = max(map(len, rows))
        if options.get("truncation") and limit is not None and longest > limit:
            raise ValueError(f"a prompt of {longest} tokens cannot be cut to {limit} without harming images")
        side = options["padding_side"]
        inputs = {"input_ids": rows}
        encoded = dict(self.tokenizer.pad(inputs, padding=options["padding"], max_length=limit, padding_side=side))
        if with_spans:
            padding = [[(0, 0)] * (len(ids) - len(own)) for ids, own in zip(encoded["input_ids"], spans, strict=True)]
            encoded["offset_mapping"] = [
                pad + own if side == "left" else own + pad for pad, own in zip(padding, spans, strict=True)
            ]
        return encoded

    def tokenize(self, texts: list[str], grids: list[Grid], with_spans: bool = False) -> list[Tokenized]:
        """Tokenizes turn by turn, as in training: what follows a marker is tokenized as a text of its own.

        Args:
            texts: Prompts with a placeholder for each image.
            grids: Rows and columns of the images, in the order in which they appear.
            with_spans: Whether to say where each token comes from; needs a fast tokenizer.

        Returns:
            Of each text its token ids, with a `<vpatch>` for each patch; and the characters that each token stands for,
            all patches of an image for its placeholder, nothing unless they were asked for.

        Raises:
            ValueError: If the texts do not hold as many images as there are grids.
        """
        texts = [_ANY_PLACEHOLDER.sub(PLACEHOLDER, text) for text in texts]
        held = sum(text.count(PLACEHOLDER) for text in texts)
        if held != len(grids):
            raise ValueError(
                f"the text holds {held} images (<vpatch>), but {len(grids)} were given; write prompts with "
                "apply_chat_template"
            )
        patches = iter([rows * columns for rows, columns in grids])
        return [self._expand(*self._tokenize_turns(text, with_spans), patches) for text in texts]

    def split_turns(self, text: str) -> list[str]:
        """Cuts a text after each marker (image, `<s>`, question, answer), as its parts are tokenized in training."""
        return re.split("|".join(f"(?<={re.escape(marker)})" for marker in self.turn_markers), text)

    def _tokenize_turns(self, text: str, with_spans: bool) -> Tokenized:
        pieces = [piece for piece in self.split_turns(text) if piece]
        if not pieces:
            return [], []
        encoded = self.tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=with_spans, verbose=False)
        spans: list[Span] = []
        start = 0
        for piece, found in zip(pieces, encoded.get("offset_mapping", ()), strict=False):
            spans += [(start + first, start + last) for first, last in found]
            start += len(piece)
        return [token for ids in encoded["input_ids"] for token in ids], spans

    @property
    def turn_markers(self) -> tuple[str, ...]:
        """Ends of the pieces that are tokenized each by itself."""
        return ("</vision>", self.tokenizer.bos_token, "[/INST]", self.tokenizer.eos_token)

    def _expand(self, ids: list[int], spans: list[Span], patches: Iterator[int]) -> Tokenized:
        """Repeats each `<vpatch>` as often as its image has patches."""
        counts = [next(patches) if token == self.image_token_id else 1 for token in ids]
        return (
            [token for token, count in zip(ids, counts, strict=True) for _ in range(count)],
            [span for span, count in zip(spans, counts, strict=False) for _ in range(count)],
        )

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        patches = [self.image_processor.get_number_of_image_patches(*size, kwargs) for size in image_sizes or []]
        return MultiModalData(num_image_tokens=[count + 2 for count in patches], num_image_patches=patches)

    @property
    def model_input_names(self) -> list[str]:
        """Everything that a call can return."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
