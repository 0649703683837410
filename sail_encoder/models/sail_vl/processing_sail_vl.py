"""Turns conversations with images into what `SailVLForConditionalGeneration` takes, as a transformers processor."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import Qwen2Tokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from typing_extensions import Unpack

from sail_encoder.models.sail_vl.configuration_sail_vl import SailVLConfig
from sail_encoder.models.sail_vl.image_processing_sail_vl import SailVLImageProcessor, SailVLImageProcessorKwargs
from sail_encoder.models.sail_vl.prompts import CHAT_TEMPLATE, IMAGE, expand_images
from sail_encoder.models.sail_vl.published import IMAGE_TOKEN, find_described, hub_name, read_preprocessing

STRAY_TOKENIZER = "tokenizer.model"
"""File of another model's tokenizer that lies in published folders."""


class SailVLProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of `SailVLProcessor`. Prompts are padded on the left, so that answers of a batch start at one column."""

    _defaults = {"text_kwargs": {"padding": False, "padding_side": "left"}}


class SailVLProcessor(ProcessorMixin):
    """A `SailVLImageProcessor` and a tokenizer, and the chat format of SAIL-VL.

    Args:
        image_processor: Cuts images into tiles.
        tokenizer: With the tokens `<img>`, `<IMG_CONTEXT>` and `</img>`; it is set to pad on the left.
        image_seq_length: Projected tokens of a tile.
        chat_template: Jinja template of a conversation.
    """

    valid_processor_kwargs = SailVLProcessorKwargs

    def __init__(
        self,
        image_processor: SailVLImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        image_seq_length: int = 256,
        chat_template: str | None = CHAT_TEMPLATE,
        **kwargs: Any,
    ) -> None:
        # A tokenizer's file may say otherwise; both our own batches and those of transformers' pipeline go by this.
        tokenizer.padding_side = "left"
        self.image_seq_length = image_seq_length
        self.image_token = IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Loads a processor in the native format, or builds it from a published folder; options as in transformers.

        Raises:
            CheckpointError: If the folder holds no SAIL-VL.
        """
        name = hub_name(str(pretrained_model_name_or_path))
        folder = find_described(name, kwargs.get("revision"))
        if (folder / "processor_config.json").is_file():
            return super().from_pretrained(folder, **kwargs)
        config = SailVLConfig.from_pretrained(folder)
        options = {name: kwargs[name] for name in SailVLImageProcessorKwargs.__annotations__ if name in kwargs}
        image_processor = SailVLImageProcessor(**{**read_preprocessing(folder, config.tile_size), **options})
        return cls(image_processor, load_tokenizer(folder), config.tokens_per_tile)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[SailVLProcessorKwargs],  # type: ignore[misc]
    ) -> BatchFeature:
        """Processes images, text with images, or text alone.

        Args:
            images: All images in the order in which they appear in the texts.
            text: One prompt or several, with `<image>` for an image, as `apply_chat_template` writes.
            kwargs: Options of the image processor and the tokenizer, `max_tiles`, `padding` and `return_tensors` among
                them.

        Returns:
            `input_ids` and `attention_mask` [prompts, length] and `pixel_values` [tiles, 3, side, side], as far as
            there are text and images. Images without text come with `num_tiles` [images].

        Raises:
            UserError: If the texts do not hold as many images as there are.
            ValueError: If there is neither text nor image.
        """
        if images is None and text is None:
            raise ValueError("there is nothing to process: give text, images or both")
        options = self._merge_kwargs(SailVLProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if images is not None:
            flat = make_flat_list_of_images(self.image_processor.fetch_images(images))
            data |= self.image_processor(flat, **{**options["images_kwargs"], "return_tensors": "np"})
        if text is not None:
            tiles = data.pop("num_tiles", ())
            texts = expand_images([text] if isinstance(text, str) else text, list(tiles), self.image_seq_length)
            data |= self.tokenizer(texts, **{**options["text_kwargs"], "return_tensors": None})
        return BatchFeature(data, tensor_type=options["text_kwargs"].get("return_tensors"))

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        tiles = [self.image_processor.get_number_of_image_patches(*size, kwargs) for size in image_sizes or []]
        tokens = [self.image_seq_length * count + 2 for count in tiles]
        return MultiModalData(num_image_tokens=tokens, num_image_patches=tiles)

    @property
    def model_input_names(self) -> list[str]:
        """Everything that a call with text can return."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a published folder.

    It is named here, and not looked up by an Auto class, which would want to run the folder's own code. Where
    tokenizer.json is missing, transformers would take the stray file of another model for it, so that is left out.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / STRAY_TOKENIZER).is_file():
        return Qwen2Tokenizer.from_pretrained(folder)
    with TemporaryDirectory() as clean:
        for file in (*folder.glob("*token*.json"), folder / "vocab.json", folder / "merges.txt"):
            if file.is_file():
                shutil.copy(file, clean)
        return Qwen2Tokenizer.from_pretrained(clean)
