"""Turns conversations with images and regions into what `PixelSailForCausalLM` takes, as a transformers processor."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from typing_extensions import Unpack

from sail_encoder.images.decoding import Array
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
from sail_encoder.models.pixel_sail.image_processing_pixel_sail import PixelSailImageProcessor
from sail_encoder.models.pixel_sail.published import END_TOKENS, find_described
from sail_encoder.models.pixel_sail.regions import number_patches
from sail_encoder.models.pixel_sail.tokens import add_pixel_tokens
from sail_encoder.models.sail import processing_sail
from sail_encoder.models.sail.config_file import read_preprocessing
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.positions import as_grids
from sail_encoder.models.sail.processing_sail import SailProcessor, SailProcessorKwargs

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set part = namespace(images='', text='') -%}
{%- if message.content is string -%}
{%- set part.text = message.content -%}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}{%- set part.images = part.images + '<vision><vpatch></vision>' -%}
{%- elif item.type == 'text' -%}{%- set part.text = part.text + item.text -%}
{%- else -%}{{ raise_exception('Pixel-SAIL reads text and images, not ' + item.type) }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'user' -%}
{{ part.images + '<|im_start|>user\\n' + part.text + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' -%}
{% generation %}{{ part.text + '<|endoftext|>' }}{% endgeneration %}
{%- else -%}
{{ raise_exception('Pixel-SAIL knows the roles user and assistant, not ' + message.role) }}
{%- endif -%}
{%- endfor -%}"""
"""The published format of models that are made of Qwen: the answer follows the question at once, without a header."""

_TURN_START = "<|im_start|>"


class PixelSailProcessor(SailProcessor):
    """A `PixelSailImageProcessor` and a tokenizer, and the chat format of Pixel-SAIL.

    Args:
        image_processor: Cuts images into patches.
        tokenizer: With the tokens of images, `[SEG]` and the visual prompts; it is set to pad on the left.
        chat_template: Jinja template of a conversation; by default the published one where the tokenizer has
            `<|im_start|>`, or else that of SAIL.
    """

    def __init__(
        self,
        image_processor: PixelSailImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        if chat_template is None:
            is_qwen = _TURN_START in tokenizer.get_added_vocab()
            chat_template = CHAT_TEMPLATE if is_qwen else processing_sail.CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Loads a processor in the native format, or builds it from a published folder; options as in transformers.

        Raises:
            CheckpointError: If the folder holds no Pixel-SAIL.
        """
        folder = find_described(str(pretrained_model_name_or_path), kwargs.get("revision"))
        if (folder / "processor_config.json").is_file():
            return super().from_pretrained(folder, **kwargs)
        config = PixelSailConfig.from_pretrained(folder)
        # Code that comes with a checkpoint is never run.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        return cls(PixelSailImageProcessor(patch_size=config.vision_patch_size), tokenizer)

    @classmethod
    def from_sail(cls, name: str, **options: Any) -> "PixelSailProcessor":
        """Makes the processor of a Pixel-SAIL that is to be trained from a SAIL, with that one's chat format.

        Args:
            name: `sail-tiny`, a folder or a Hub name of a SAIL, published or native.
            options: Options of `PixelSailImageProcessor`.

        Raises:
            CheckpointError: If there is no such SAIL.
        """
        folder = find_checkpoint(name, weights=False)
        config = SailConfig.from_pretrained(folder)
        preprocessing = {"patch_size": config.vision_patch_size, **read_preprocessing(folder), **options}
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        add_pixel_tokens(tokenizer)
        return cls(PixelSailImageProcessor(**preprocessing), tokenizer)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        regions: Sequence[Mapping[int, Array]] | None = None,
        **kwargs: Unpack[SailProcessorKwargs],  # type: ignore[misc]
    ) -> BatchFeature:
        """Processes images, text with images, or text alone.

        Args:
            images: As in `SailProcessor`.
            text: As in `SailProcessor`; `<Prompt0>` to `<Prompt14>` in it name regions.
            regions: Per image the numbers of visual prompts and their masks, bool [height, width] at the image's size.
            kwargs: As in `SailProcessor`.

        Returns:
            What `SailProcessor` returns, and where there are regions `visual_prompts` [total patches]: the number of
            the prompt that covers each patch, or -1.

        Raises:
            UserError: If there is no visual prompt of a number, or a region vanishes in resizing.
            ValueError: As `SailProcessor`.
        """
        features = super().__call__(images, text, **kwargs)
        if regions is None:
            return features
        grids, patch_size = as_grids(features["image_grid_hw"]), self.image_processor.patch_size
        pairs = zip(regions, grids, strict=True)
        numbers = np.concatenate([number_patches(masks, grid, patch_size) for masks, grid in pairs])
        tensor_type = kwargs.get("return_tensors")
        return BatchFeature({**features, "visual_prompts": numbers}, tensor_type=tensor_type)

    @property
    def turn_markers(self) -> tuple[str, ...]:
        if _TURN_START not in self.tokenizer.get_added_vocab():
            return super().turn_markers
        turn_end, answer_end = END_TOKENS
        return ("</vision>", f"{turn_end}\n", answer_end)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "visual_prompts"]
