"""What `sail-tiny` has learned, measured on drawn scenes that it never saw.

    python -m evals.tiny --out runs/tiny.json

Features: a logistic probe on mean-pooled features, a layer at a time, for the shape and the color of a single thing;
the layer is chosen on validation scenes and reported on test scenes, beside the same probe on raw pixels and on the
same network with random weights. Language: captions and answers by greedy decoding, right where they match word for
word.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForImageTextToText, AutoProcessor

from evals.scene_questions import CAPTION_PROMPT, Question, ask_about
from evals.scenes import COLORS, Array, Scene, draw_scene
from sail_encoder import load_backbone
from sail_encoder.hub import find_checkpoint

if TYPE_CHECKING:
    from sail_encoder import VisionBackbone

TRAIN, VALIDATION, TEST = range(0, 3000), range(3000, 4000), range(4000, 5000)
"""Seeds of single-thing scenes for the probes."""

LANGUAGE = range(5000, 5500)
"""Seeds of the scenes for captions and questions."""

PIXEL_SIDE = 56
BATCH = 25

Labels = dict[str, Array]


def measure(model: str) -> dict[str, Any]:
    """Runs all measurements.

    Args:
        model: A SAIL checkpoint with a language head.

    Returns:
        Accuracies in percent.
    """
    splits = {name: _draw(seeds) for name, seeds in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))}
    labels = {name: _labels(scenes) for name, scenes in splits.items()}
    pixels = {name: [_raw_pixels(scenes)] for name, scenes in splits.items()}
    probes = {"raw pixels": probe(pixels, labels)}
    for name, pretrained in (("random weights", False), (model, True)):
        backbone = load_backbone(model, pretrained=pretrained)
        features = {split: _pooled_layers(backbone, scenes) for split, scenes in splits.items()}
        probes[name] = probe(features, labels)
    return {"probes": probes, "language": language(model)}


def _draw(seeds: Sequence[int]) -> list[Scene]:
    return [draw_scene(seed, things=1) for seed in seeds]


def _labels(scenes: list[Scene]) -> Labels:
    colors = list(COLORS)
    return {
        "shape": np.array([scene.label for scene in scenes]),
        "color": np.array([colors.index(scene.things[0].color) for scene in scenes]),
    }


def _raw_pixels(scenes: list[Scene]) -> Array:
    size = (PIXEL_SIDE, PIXEL_SIDE)
    return np.stack([np.asarray(Image.fromarray(scene.image).resize(size)).ravel() / 255 for scene in scenes])


def _pooled_layers(backbone: "VisionBackbone", scenes: list[Scene]) -> list[Array]:
    """Mean-pooled features of every layer, each [scenes, C]."""
    features = backbone.encode([scene.image for scene in scenes], layers="all")
    return [torch.stack([one.pool("mean", layer) for one in features]).numpy() for layer in range(backbone.num_layers)]


def probe(features: dict[str, list[Array]], labels: dict[str, Labels]) -> dict[str, dict[str, float]]:
    """Test accuracy of the layer that is best on validation, for each kind of label."""
    results = {}
    for kind in ("shape", "color"):
        fitted = [
            make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300)).fit(layer, labels["train"][kind])
            for layer in features["train"]
        ]
        on_validation = [
            one.score(layer, labels["validation"][kind])
            for one, layer in zip(fitted, features["validation"], strict=True)
        ]
        best = int(np.argmax(on_validation))
        score = fitted[best].score(features["test"][best], labels["test"][kind])
        results[kind] = {"accuracy": round(100 * score, 1), "layer": best}
    return results


def language(model: str) -> dict[str, float]:
    """Share of captions and answers that are right."""
    folder = find_checkpoint(model)
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()

    def count(kind: str, correct: bool) -> None:
        asked[kind] += 1
        right[kind] += correct

    single = [(draw_scene(seed, things=1), Question(CAPTION_PROMPT, "", "caption")) for seed in LANGUAGE]
    for (scene, _), caption in zip(single, answer(network, processor, single), strict=True):
        thing = scene.things[0]
        count("caption: shape word", thing.shape in caption.split())
        count("caption: color word", thing.color in caption.split())
        count("caption: every attribute", caption == scene.caption)
    rng = np.random.default_rng(0)
    scenes = [draw_scene(seed) for seed in LANGUAGE]
    pairs = [(scene, question) for scene in scenes for question in ask_about(scene, rng, 4)]
    for (_, question), said in zip(pairs, answer(network, processor, pairs), strict=True):
        count(f"question: {question.kind}", said == question.answer)
    return {kind: round(100 * right[kind] / asked[kind], 1) for kind in asked}


def answer(network: Any, processor: Any, pairs: list[tuple[Scene, Question]]) -> list[str]:
    """Asks each question about its scene, in batches, greedily."""
    answers: list[str] = []
    for start in range(0, len(pairs), BATCH):
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image, prompt in ((Image.fromarray(scene.image), q.prompt) for scene, q in pairs[start : start + BATCH])
        ]
        inputs = processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
        output = network.generate(**inputs, do_sample=False, max_new_tokens=64)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    return answers


def as_markdown(results: dict[str, Any]) -> str:
    """The measurements as two tables."""
    rows = ["| features | shape | color |", "|---|---|---|"]
    for name, scores in results["probes"].items():
        cells = [f"{scores[kind]['accuracy']} % (layer {scores[kind]['layer']})" for kind in ("shape", "color")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += ["", "| language | right |", "|---|---|"]
    rows += [f"| {kind} | {share} % |" for kind, share in sorted(results["language"].items())]
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sail-tiny")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    figures = measure(arguments.model)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(as_markdown(figures))
