"""Makes SAIL known to transformers' Auto classes, without importing transformers before its user does."""

from functools import cache
from types import ModuleType

import wrapt

_AUTO = "transformers.models.auto"


def register_when_needed() -> None:
    """Registers the configuration and the image processor as soon as the modules of their Auto classes are imported.

    The models follow with the first `SailConfig` that is made (`register_models`): while transformers is being
    imported its modules cannot be relied on, and no Auto class builds a model without a configuration.
    """
    wrapt.register_post_import_hook(_register_config, f"{_AUTO}.configuration_auto")
    wrapt.register_post_import_hook(_register_image_processor, f"{_AUTO}.image_processing_auto")
    wrapt.register_post_import_hook(_register_processor, f"{_AUTO}.processing_auto")


def _register_config(auto: ModuleType) -> None:
    from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
    from sail_encoder.models.sail.configuration_sail import SailConfig
    from sail_encoder.models.sail_vl.configuration_sail_vl import TOWER_CONFIGS, SailVLConfig

    auto.AutoConfig.register("sail", SailConfig)
    auto.AutoConfig.register("pixel_sail", PixelSailConfig)
    for name, config in (*TOWER_CONFIGS.items(), (SailVLConfig.model_type, SailVLConfig)):
        auto.AutoConfig.register(name, config)


def _register_image_processor(auto: ModuleType) -> None:
    from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
    from sail_encoder.models.pixel_sail.image_processing_pixel_sail import PixelSailImageProcessor
    from sail_encoder.models.sail.configuration_sail import SailConfig
    from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
    from sail_encoder.models.sail_vl.configuration_sail_vl import SailVLConfig
    from sail_encoder.models.sail_vl.image_processing_sail_vl import SailVLImageProcessor

    # One class for both backends: the published resizing is Pillow's.
    pairs = {
        SailConfig: SailImageProcessor,
        SailVLConfig: SailVLImageProcessor,
        PixelSailConfig: PixelSailImageProcessor,
    }
    for config, processor in pairs.items():
        backends = dict.fromkeys(("pil", "torchvision"), processor)
        auto.AutoImageProcessor.register(config, image_processor_classes=backends)


def _register_processor(auto: ModuleType) -> None:
    from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
    from sail_encoder.models.pixel_sail.processing_pixel_sail import PixelSailProcessor
    from sail_encoder.models.sail.configuration_sail import SailConfig
    from sail_encoder.models.sail.processing_sail import SailProcessor
    from sail_encoder.models.sail_vl.configuration_sail_vl import SailVLConfig
    from sail_encoder.models.sail_vl.processing_sail_vl import SailVLProcessor

    auto.AutoProcessor.register(SailConfig, SailProcessor)
    auto.AutoProcessor.register(SailVLConfig, SailVLProcessor)
    auto.AutoProcessor.register(PixelSailConfig, PixelSailProcessor)


@cache
def register_models() -> None:
    """Registers the models; called when a `SailConfig` is made."""
    from transformers import AutoBackbone, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    from sail_encoder.models.sail.configuration_sail import SailConfig
    from sail_encoder.models.sail.modeling_sail import SailForCausalLM, SailModel
    from sail_encoder.models.sail.modeling_sail_backbone import SailBackbone

    AutoBackbone.register(SailConfig, SailBackbone)
    AutoModel.register(SailConfig, SailModel)
    AutoModelForCausalLM.register(SailConfig, SailForCausalLM)
    AutoModelForImageTextToText.register(SailConfig, SailForCausalLM)


@cache
def register_sail_vl_models() -> None:
    """Registers the models; called when a configuration of SAIL-VL or of one of its towers is made."""
    from transformers import AutoModel, AutoModelForImageTextToText

    from sail_encoder.models.sail_vl.configuration_sail_vl import InternViTConfig, SailViTConfig, SailVLConfig
    from sail_encoder.models.sail_vl.modeling_sail_vl import SailVLForConditionalGeneration
    from sail_encoder.models.sail_vl.modeling_sailvit import InternViTModel, SailViTModel

    AutoModel.register(SailViTConfig, SailViTModel)
    AutoModel.register(InternViTConfig, InternViTModel)
    AutoModel.register(SailVLConfig, SailVLForConditionalGeneration)
    AutoModelForImageTextToText.register(SailVLConfig, SailVLForConditionalGeneration)


@cache
def register_pixel_sail_models() -> None:
    """Registers the models; called when a `PixelSailConfig` is made."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
    from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM, PixelSailModel

    AutoModel.register(PixelSailConfig, PixelSailModel)
    AutoModelForCausalLM.register(PixelSailConfig, PixelSailForCausalLM)
    AutoModelForImageTextToText.register(PixelSailConfig, PixelSailForCausalLM)
