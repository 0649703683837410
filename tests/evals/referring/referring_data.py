"""A data set in the published files of RefCOCO, of drawn scenes; and a small SAIL with the tokenizer of sail-tiny."""

import json
import pickle
import shutil

import numpy as np
import torch
from PIL import Image

from evals.scene_expressions import draw_thing_masks
from evals.scenes import draw_scene
from sail_encoder import SailConfig
from sail_encoder.io.hub import TINY_FOLDER
from sail_encoder.models.sail.modeling_sail import SailForCausalLM

SPLITS = ("train", "train", "train", "val", "val", "testA", "testB")


def small_sail(folder):
    """A SAIL of random weights that trains in seconds."""
    config = SailConfig.from_pretrained(TINY_FOLDER).to_dict() | {"out_features": None, "out_indices": None}
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = SailForCausalLM(SailConfig(**{**config, **sizes, "num_key_value_heads": 1, "head_dim": 16}))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
        shutil.copyfile(TINY_FOLDER / name, folder / name)
    return str(folder)


def runs_of(mask):
    flat = mask.T.ravel()
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    return [int(run) for run in np.diff([0, *ends])] if not flat[0] else [0, *map(int, np.diff([0, *ends]))]


def write_refcoco(root, generalised=False):
    """Seven images; masks are run lengths, but for one polygon. Returns the folder, and the masks by annotation."""
    (root / "images").mkdir(parents=True)
    images, annotations, refs, masks = [], [], [], {}
    for number, split in enumerate(SPLITS):
        scene = draw_scene(number, things=2, height=60, width=80)
        name = f"COCO_train2014_{number:012d}.jpg"
        Image.fromarray(scene.image).save(root / "images" / name)
        images.append({"id": 500 + number, "file_name": name, "height": 60, "width": 80})
        targets = []
        for place, mask in enumerate(draw_thing_masks(scene)):
            targets.append(10 * number + place)
            masks[targets[-1]] = mask
            segmentation = {"size": [60, 80], "counts": runs_of(mask)}
            if not targets[-1]:
                box = scene.things[0].box
                segmentation = [[box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]]
                masks[0] = np.zeros((60, 80), bool)
                masks[0][box[1] : box[3], box[0] : box[2]] = True
            annotations.append({"id": targets[-1], "image_id": 500 + number, "segmentation": segmentation})
            said = [{"sent_id": 1, "sent": f"the {scene.things[place].name}", "tokens": [], "raw": ""}]
            refs.append({"image_id": 500 + number, "split": split, "sentences": said, "ann_id": targets[-1]})
        if generalised:
            for sent, ids in (("both things", targets), ("the plane", [-1])):
                sentences = [{"sent": sent}]
                refs.append({"image_id": 500 + number, "split": split, "sentences": sentences, "ann_id": ids})
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    if generalised:
        (root / "grefs(unc).json").write_text(json.dumps(refs))
    else:
        with (root / "refs(unc).p").open("wb") as file:
            pickle.dump(refs, file, protocol=2)
    return root, masks
