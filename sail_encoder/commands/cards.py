"""Model cards: the README.md of a converted checkpoint, with its use through transformers, source and licence."""

import re
from pathlib import Path

from sail_encoder.backbones.published import LICENCES, published_name
from sail_encoder.io.files import read_text

CARD = "README.md"

_OPEN = """from PIL import Image

import sail_encoder  # makes the classes known to transformers
from transformers import {classes}

image = Image.open("image.png").convert("RGB")
"""

_ENCODER = """processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}").eval()
inputs = processor(images=image, return_tensors="pt")
patches = model(**inputs).last_hidden_state  # [patches, channels], the rows of the grid one after the other
"""

_TOWER = """model = AutoModel.from_pretrained("{folder}").eval()
backbone = sail_encoder.load_backbone("{folder}")  # which prepares images: tiles or native size
grid = backbone.encode([image])[0].grid  # [rows, columns, channels]
"""

_LANGUAGE = """processor = AutoProcessor.from_pretrained("{folder}")
model = AutoModelForImageTextToText.from_pretrained("{folder}").eval()
content = [{{"type": "image", "image": image}}, {{"type": "text", "text": "Describe the image."}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    processor_kwargs={{"return_tensors": "pt"}},
)
output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
"""

_MODEL = """model = AutoModelForImageTextToText.from_pretrained("{folder}").eval()
backbone = sail_encoder.load_backbone("{folder}")  # needs no tokenizer, which is not here
grid = backbone.encode([image])[0].grid  # [rows, columns, channels]
"""

_MASKS = """Masks: `sail segment refer IMAGE EXPRESSION --model {folder} --out DIR`, or in Python
`sail_encoder.load_chat("{folder}").ask("Please segment the ball in this image.", image).masks`."""


CardKind = tuple[str, ...]
"""What a checkpoint is, in a few words; its use, after the image is open; and what is to be said after that."""

ENCODER: CardKind = ("The encoder of a SAIL, without language head", _ENCODER)
SAIL: CardKind = ("A SAIL", _LANGUAGE)
SAIL_VL: CardKind = ("A SAIL-VL", _LANGUAGE)
SAIL_VL_MODEL: CardKind = ("A SAIL-VL, without tokenizer", _MODEL)
TOWER: CardKind = ("The vision tower of a SAIL-VL", _TOWER)
PIXEL_SAIL: CardKind = ("A Pixel-SAIL", _LANGUAGE, _MASKS)


def write_card(kind: CardKind, model: str, source: Path, folder: Path, title: str) -> None:
    """Writes README.md, unless there is one.

    Args:
        kind: What the checkpoint is.
        model: Name under which it was converted: a Hub name, or a folder.
        source: Folder of its files.
        folder: Where to write.
        title: Name of the folder as its user will see it.
    """
    if (folder / CARD).exists():
        return
    what, usage, *more = kind
    classes = sorted(set(re.findall(r"\bAuto\w+", usage)))
    known = published_name(model)
    licence = find_licence(source) or LICENCES.get(known or "", "")
    origin = f"[{known}](https://huggingface.co/{known})" if known else f"`{Path(model).name}`"
    terms = f"{licence}, as the source says" if licence else f"that of the source; see the card of {origin}"
    front = [
        "library_name: transformers",
        f"pipeline_tag: {'image-text-to-text' if 'ImageTextToText' in usage else 'image-feature-extraction'}",
        *([f"base_model: {known}"] if known else []),
        *([f"license: {licence.lower()}"] if licence else []),
    ]
    code = (_OPEN + usage).format(classes=", ".join(classes), folder=title)
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# {title}",
        f"{what} in the format of transformers, converted from {origin} by `sail convert`.",
        f"```python\n{code}```",
        *(text.format(folder=title) for text in more),
        f"Source: {origin}",
        f"Licence of the weights: {terms}.",
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def find_licence(folder: Path) -> str:
    """Identifier of the licence that the card in a folder names, empty where it names none."""
    try:
        text = read_text(folder / CARD)
    except (OSError, UnicodeDecodeError):
        return ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    named = re.search(r"^license:\s*([\w.+-]+)\s*$", front[1], re.MULTILINE) if front else None
    return named[1] if named else ""
