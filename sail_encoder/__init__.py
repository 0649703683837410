"""Vision-encoder feature extraction with SAIL, a single transformer for vision and language.

    from sail_encoder import load_backbone

    backbone = load_backbone("sail-tiny")
    features = backbone.encode(["cat.jpg"], layers=[-1])[0]
    features.grid            # Tensor [nh, nw, C]

Importing this package defines names and does nothing else: a name is loaded when it is first used, and SAIL is made
known to transformers' Auto classes when these are.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sail_encoder.auto import register_when_needed

if TYPE_CHECKING:
    from sail_encoder.backbones.base import VisionBackbone
    from sail_encoder.backbones.features import Features
    from sail_encoder.backbones.registry import load_backbone
    from sail_encoder.chat.conversation import Chat, ask_each, load_chat
    from sail_encoder.chat.sampling import Sampling
    from sail_encoder.commands.extract import extract
    from sail_encoder.images.resizing import Resize
    from sail_encoder.io.errors import CheckpointError, ImageError, SourceError, StoreError, UserError
    from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
    from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
    from sail_encoder.models.pixel_sail.processing_pixel_sail import PixelSailProcessor
    from sail_encoder.models.sail.configuration_sail import SailConfig
    from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
    from sail_encoder.models.sail.modeling_sail import SailForCausalLM, SailModel
    from sail_encoder.models.sail.modeling_sail_backbone import SailBackbone
    from sail_encoder.models.sail.processing_sail import SailProcessor
    from sail_encoder.store.dataset import FeatureDataset
    from sail_encoder.store.reading import FeatureFolder

__version__ = "0.1.0"

_HOMES = {
    "Chat": "chat.conversation",
    "CheckpointError": "io.errors",
    "FeatureDataset": "store.dataset",
    "FeatureFolder": "store.reading",
    "Features": "backbones.features",
    "ImageError": "io.errors",
    "PixelSailConfig": "models.pixel_sail.configuration_pixel_sail",
    "PixelSailForCausalLM": "models.pixel_sail.modeling_pixel_sail",
    "PixelSailProcessor": "models.pixel_sail.processing_pixel_sail",
    "Resize": "images.resizing",
    "SailBackbone": "models.sail.modeling_sail_backbone",
    "SailConfig": "models.sail.configuration_sail",
    "SailForCausalLM": "models.sail.modeling_sail",
    "SailImageProcessor": "models.sail.image_processing_sail",
    "SailModel": "models.sail.modeling_sail",
    "SailProcessor": "models.sail.processing_sail",
    "Sampling": "chat.sampling",
    "SourceError": "io.errors",
    "StoreError": "io.errors",
    "UserError": "io.errors",
    "VisionBackbone": "backbones.base",
    "ask_each": "chat.conversation",
    "extract": "commands.extract",
    "load_backbone": "backbones.registry",
    "load_chat": "chat.conversation",
}

__all__ = [
    "Chat",
    "CheckpointError",
    "FeatureDataset",
    "FeatureFolder",
    "Features",
    "ImageError",
    "PixelSailConfig",
    "PixelSailForCausalLM",
    "PixelSailProcessor",
    "Resize",
    "SailBackbone",
    "SailConfig",
    "SailForCausalLM",
    "SailImageProcessor",
    "SailModel",
    "SailProcessor",
    "Sampling",
    "SourceError",
    "StoreError",
    "UserError",
    "VisionBackbone",
    "ask_each",
    "extract",
    "load_backbone",
    "load_chat",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sail_encoder' has no attribute '{name}'")
    value = getattr(import_module(f"sail_encoder.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


register_when_needed()
