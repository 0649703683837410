"""Our backbones, neck and heads in the registries of mmsegmentation; importing this registers them.

custom_imports = dict(imports=["heads.mmseg"])
model = dict(backbone=dict(type="SailBackbone", model="ByteDance-Seed/SAIL-7B", out_indices=[7, 15, 23, 31]), ...)
"""

try:
    from mmseg.registry import MODELS as _MODELS  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"heads.mmseg needs mmsegmentation ({error}); pip install onedl-mmcv onedl-mmengine "
        "onedl-mmsegmentation brings its maintained distribution, without compiling anything"
    ) from None

from heads.mmseg.backbone import SailBackbone
from heads.mmseg.decode_head import NativeHead
from heads.mmseg.neck import FeaturePyramidNeck

__all__ = ["FeaturePyramidNeck", "NativeHead", "SailBackbone"]
