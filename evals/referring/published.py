"""The published files of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO.

A folder holds the expressions, `refs(unc).p` and the like, of gRefCOCO `grefs(unc).json`, and beside them
`instances.json` with images and masks. The images are those of COCO's train2014.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evals.errors import DatasetError
from evals.referring.coco_masks import decode_mask
from evals.referring.pickles import read_pickle
from evals.scene_expressions import Expression
from sail_encoder.chat.families import PIXEL_SAIL
from sail_encoder.chat.questions import check_prompt
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.io.errors import ImageError, UserError, in_one_line
from sail_encoder.io.files import read_text
from sail_encoder.io.typed import require_fields
from sail_encoder.models.pixel_sail.questions import check_region, refer

PATTERNS = ("refs(*).p", "refs(*).json", "grefs(*).p", "grefs(*).json")
"""Names of files of expressions."""

INSTANCES = "instances.json"
IMAGE_FOLDERS = (
    *("images/train2014", "images", "train2014", "../images/mscoco/images/train2014", "../images/train2014"),
    *("../train2014", "../coco/train2014", "../coco2014/train2014"),
)
"""Where images are looked for, from the folder of the expressions."""

_NO_TARGET = -1
"""Id of an annotation that gRefCOCO gives where an expression means nothing in the image."""

_REF: dict[str, Any] = {"image_id": int, "split": str, "sentences": list[dict[str, Any]]}
_IMAGE: dict[str, Any] = {"id": int, "file_name": str, "height": int, "width": int}


class PublishedExpressions:
    """Expressions, masks and images of one data set.

    Args:
        path: File of the expressions.

    Raises:
        DatasetError: If a file is missing, damaged, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refs = [ref for ref in _read_refs(path) if ref["sentences"]]
        self.sizes, self.annotations = _read_instances(path.with_name(INSTANCES))
        self.folder = _find_images(path.parent)

    @staticmethod
    def find(data: str) -> "PublishedExpressions":
        """Opens a data set by its folder, or by its file of expressions.

        Raises:
            DatasetError: If there is none, or several.
        """
        path = Path(data)
        if path.is_file():
            return PublishedExpressions(path)
        found = [file for pattern in PATTERNS for file in sorted(path.glob(pattern))]
        if not found:
            raise DatasetError(
                f"{data} has no file of referring expressions, such as refs(unc).p or grefs(unc).json; name the folder "
                "that has it, or scenes-referring for drawn scenes"
            )
        if len(found) > 1:
            raise DatasetError(f"{data} has {' and '.join(file.name for file in found)}; name one of these files")
        return PublishedExpressions(found[0])

    @property
    def splits(self) -> list[str]:
        """Names of the splits, train first."""
        names = dict.fromkeys(ref["split"] for ref in self.refs)
        return sorted(names, key=lambda name: (name != "train", name != "val", name))

    def images_of(self, split: str) -> list[tuple[int, list[Expression]]]:
        """Ids of the images of a split, each with its expressions, in the order of the file.

        Raises:
            DatasetError: If an expression cannot be asked, or one of its masks or images is not there.
        """
        images: dict[int, list[Expression]] = {}
        for ref in self.refs:
            if ref["split"] == split:
                if ref["image_id"] not in self.sizes:
                    raise DatasetError(
                        f"{self.path.with_name(INSTANCES)} has no image {ref['image_id']}, which {self.path.name} names"
                    )
                images.setdefault(ref["image_id"], []).extend(self._expressions_of(ref))
        for number in images:
            if not (self.folder / self.sizes[number][0]).is_file():
                raise DatasetError(f"no image {self.folder / self.sizes[number][0]}, which {self.path} speaks of")
        return list(images.items())

    def _expressions_of(self, ref: dict[str, Any]) -> list[Expression]:
        ids: list[int] = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        targets = tuple(number for number in ids if number != _NO_TARGET)
        for number in targets:
            image, _ = self.annotations.get(number, (None, None))
            if image != ref["image_id"]:
                raise DatasetError(
                    f"{self.path.with_name(INSTANCES)} has no mask {number} of image {ref['image_id']}, which "
                    f"{self.path.name} names"
                )
        expressions = []
        for sentence in ref["sentences"]:
            text = sentence.get("sent")
            problem = _problem_of(text)
            if problem:
                raise DatasetError(
                    f"{self.path}: an expression about image {ref['image_id']} cannot be asked ({problem}); correct "
                    "the file"
                )
            expressions.append(Expression(text, targets))
        return expressions

    def read_image(self, number: int) -> Image.Image:
        """An image by its id.

        Raises:
            DatasetError: If it cannot be read, or has another size than its masks.
        """
        name, *size = self.sizes[number]
        try:
            image = read_image(self.folder / name)[0]
        except ImageError as error:
            raise DatasetError(str(error)) from None
        if [image.height, image.width] != size:
            raise DatasetError(
                f"{self.folder / name} is {image.width}x{image.height} pixels, its masks {size[1]}x{size[0]}; get the "
                "images that the masks were drawn on"
            )
        return image

    def mask_of(self, number: int, targets: tuple[int, ...]) -> Array:
        """Mask of annotations of an image together, bool [height, width].

        Raises:
            DatasetError: If one cannot be decoded.
        """
        _, height, width = self.sizes[number]
        mask = np.zeros((height, width), bool)
        for target in targets:
            try:
                mask |= decode_mask(self.annotations[target][1], (height, width))
            except DatasetError as error:
                raise DatasetError(f"{self.path.with_name(INSTANCES)}, annotation {target}: {error}") from None
        return mask


def _problem_of(text: Any) -> str | None:
    """Fault of an expression that cannot be asked, by the rules of all questions."""
    try:
        question = refer(text if isinstance(text, str) else "")
        check_prompt(question, PIXEL_SAIL.placeholders)
        check_region(question, is_shown=False)
    except UserError as error:
        return str(error)
    return None


def _read_refs(path: Path) -> list[dict[str, Any]]:
    content = read_pickle(path) if path.suffix == ".p" else _read_json(path)
    try:
        if not isinstance(content, list) or not content:
            raise TypeError("it is no list of them")
        for ref in content:
            if not require_fields(ref, _REF).keys() >= _REF.keys() or not _are_ids(ref.get("ann_id")):
                raise TypeError(f"one has not image_id, split, sentences and ann_id: {str(ref)[:80]}")
    except TypeError as error:
        raise DatasetError(f"{path} holds no referring expressions ({error})") from None
    return content


def _are_ids(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(number, int) for number in value))


def _read_instances(path: Path) -> tuple[dict[int, tuple[str, int, int]], dict[int, tuple[int, Any]]]:
    """Name, height and width of images, and of annotations the image and the mask as it is stored, by their ids."""
    content = _read_json(path)
    try:
        images = [require_fields(image, _IMAGE) for image in content["images"]]
        sizes = {one["id"]: (one["file_name"], one["height"], one["width"]) for one in images}
        annotations = {one["id"]: (one["image_id"], one["segmentation"]) for one in content["annotations"]}
    except (TypeError, KeyError) as error:
        raise DatasetError(f"{path} has no images and annotations as COCO has them ({error!r})") from None
    return sizes, annotations


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        raise DatasetError(f"no {path}; it belongs beside the expressions") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({in_one_line(error)}); get the original file") from None


def _find_images(folder: Path) -> Path:
    for name in IMAGE_FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise DatasetError(f"no folder with COCO's images of train2014 at {folder}; link it as {folder / 'images'}")
