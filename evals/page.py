"""Examples for the page of `sail demo`, and a trained head that segments."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from evals.scenes import draw_scene

if TYPE_CHECKING:
    from sail_encoder.page.photos import Photo
    from sail_encoder.page.views import Segmentation

_SCENE = (6, 3, 224, 224)
"""Seed of a drawn scene that `sail-tiny` was not trained on, its number of things, height and width."""


def example_photos() -> "dict[str, Photo]":
    """Two photographs of scikit-learn and a drawn scene, by name."""
    from sklearn.datasets import load_sample_images

    from sail_encoder.page.photos import Photo

    samples = load_sample_images()
    pixels = {
        Path(file).stem.capitalize(): image for file, image in zip(samples.filenames, samples.images, strict=True)
    }
    pixels["Scene"] = draw_scene(*_SCENE).image
    return {name: Photo(name, _png(Image.fromarray(image))) for name, image in pixels.items()}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def load_segmentation(folder: str) -> "Callable[[Image.Image], Segmentation]":
    """Loads a trained head, and returns the function that segments an image with it.

    The image is looked at as `sail segment predict` does, after it was brought to the size of a picture on the page.

    Raises:
        HeadError: If the folder holds no dense head, or its backbone has changed.
    """
    from evals.segmentation.option_checks import inference_of
    from evals.segmentation.predictions import legend_of, overlay
    from heads.dense.inference import predict
    from heads.dense.registry import load_dense_head
    from heads.dense.segmenter import load_segmenter
    from sail_encoder.page.photos import SIDE
    from sail_encoder.page.views import Segmentation
    from sail_encoder.pictures.overlays import photograph

    trained = load_dense_head(folder)
    segmenter = load_segmenter(trained)
    inference = inference_of(trained, segmenter.backbone.patch_size)

    def segment(image: Image.Image) -> Segmentation:
        picture = Image.fromarray(photograph(image, SIDE))
        [labels] = (found.cpu().numpy() for found in predict(segmenter, inference, [picture], lambda item: item))
        return np.asarray(overlay(picture, labels, trained.classes)), legend_of([labels], trained.classes)

    return segment
