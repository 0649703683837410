"""Evaluation of `sail-tiny` on drawn scenes that it never saw.

    python -m evals.tiny --out runs/tiny.json

Features: a logistic probe on mean-pooled features, a layer at a time, for the shape and the color of a single thing;
layer and penalty are chosen on validation scenes and reported on test scenes, beside the same probe on raw pixels and
on the same network with random weights. Language: captions and answers by greedy decoding, right where they match
word for word.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from evals.datasets.made import made_image
from evals.layers import pool_layers
from evals.probing import Samples, probe_layer
from evals.results import LayerResult, best_layers
from evals.scene_questions import CAPTION_PROMPT, ask_about
from evals.scenes import Scene, draw_scene
from heads.logistic import LogisticProbe
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.registry import load_backbone
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Resize
from sail_encoder.io.hub import find_checkpoint

PARTS = (range(3000), range(3000, 4000), range(4000, 5000))
"""Seeds of single-thing scenes to fit probes on, to choose the layer on, and to report."""

LANGUAGE = range(5000, 5500)
"""Seeds of the scenes for captions and questions."""

PENALTIES = (0.01, 0.1, 1.0)

LABELS = {
    "caption: shape word": "caption of a single thing: shape word",
    "caption: color word": "caption of a single thing: color word",
    "caption: every attribute": "caption of a single thing: every attribute",
    "question: color": "scenes of one to four things: which color?",
    "question: shape": "which shape?",
    "question: count": "how many things?",
    "question: size": "how big?",
    "question: texture": "which texture?",
    "question: exists": "is there a ...? (yes or no)",
    "question: relation": "is it left of, right of, above, below? (yes or no)",
    "question: where": "where is it? (nine places)",
    "question: at_place": "what is at this place?",
    "question: corners": "how many corners?",
    "question: outline": "is it round, has it a hole? (yes or no)",
    "question: background": "what is the background like?",
    "conversation": "any of these questions, after the model's own caption",
}
"""What each kind of caption and question is called in the table."""

PIXELS = "raw/56"
BATCH = 25


def measure(model: str) -> dict[str, Any]:
    """Runs all measurements.

    Args:
        model: A SAIL checkpoint with a language head.

    Returns:
        Accuracies in percent.
    """
    scenes = [draw_scene(seed, things=1) for part in PARTS for seed in part]
    pixels, untrained, trained = load_backbone(PIXELS), load_backbone(model, pretrained=False), load_backbone(model)
    probes = {
        "raw pixels": probe(pixels, scenes, Resize.parse(PIXELS.removeprefix("raw/"))),
        "random weights": probe(untrained, scenes, untrained.spec.resize),
        model: probe(trained, scenes, trained.spec.resize),
    }
    return {"probes": probes, "language": language(model)}


def probe(backbone: VisionBackbone, scenes: Sequence[Scene], resize: Resize) -> dict[str, dict[str, float]]:
    """Accuracy on test scenes of the layer that is best on validation scenes, for shape and color."""
    images = [made_image(f"{scene.seed}.bmp", partial(Image.fromarray, scene.image)) for scene in scenes]
    layers = pool_layers(backbone, images, FeatureSpec(backbone.name, (0,), pool="mean", size=resize)).vectors
    results = {}
    for kind in ("shape", "color"):
        labels = np.array([getattr(scene.things[0], kind) for scene in scenes])
        best = best_layer([_parts(layer, labels) for layer in layers])
        results[kind] = {"accuracy": round(100 * best.value, 1), "layer": best.layer}
    return results


def _parts(vectors: Array, labels: Array) -> list[Samples]:
    """Vectors and labels of each of `PARTS`."""
    ends = np.cumsum([len(part) for part in PARTS])[:-1]
    return list(zip(np.split(vectors, ends), np.split(labels, ends), strict=True))


def best_layer(layers: Sequence[Sequence[Samples]]) -> LayerResult:
    """The probe of the layer that is best on validation, of layers with their samples of each of `PARTS`."""
    fitted = [
        probe_layer(LogisticProbe(PENALTIES, standardize=True), layer, *parts) for layer, parts in enumerate(layers)
    ]
    return best_layers(fitted)["logistic"]


Ask = Callable[[Sequence[tuple[Scene, list[str]]]], list[str]]
"""Answers the last question of each conversation, as `answer` does."""


def language(model: str) -> dict[str, float]:
    """Share of captions and answers that are right, in percent."""
    folder = find_checkpoint(model)
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    ask = partial(answer, network, processor)
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for kind, correct in (*judge_captions(ask), *judge_answers(ask)):
        right[kind].append(correct)
    return {kind: round(100 * sum(found) / len(found), 1) for kind, found in right.items()}


def judge_captions(ask: Ask) -> Iterator[tuple[str, bool]]:
    """Yields what of the captions of single things is right."""
    scenes = [draw_scene(seed, things=1) for seed in LANGUAGE]
    for scene, caption in zip(scenes, ask([(scene, [CAPTION_PROMPT]) for scene in scenes]), strict=True):
        thing = scene.things[0]
        yield "caption: shape word", thing.shape in caption.split()
        yield "caption: color word", thing.color in caption.split()
        yield "caption: every attribute", caption == scene.caption


def judge_answers(ask: Ask) -> Iterator[tuple[str, bool]]:
    """Yields which answers are right, to each question alone, and to one per scene after the caption."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(seed) for seed in LANGUAGE]
    asked = [(scene, question) for scene in scenes for question in ask_about(scene, rng, 4)]
    for (_, question), said in zip(asked, ask([(scene, [question.prompt]) for scene, question in asked]), strict=True):
        yield f"question: {question.kind}", said == question.answer
    captions = ask([(scene, [CAPTION_PROMPT]) for scene in scenes])
    last = {scene.seed: question for scene, question in asked}
    talks = [(scene, [CAPTION_PROMPT, caption]) for scene, caption in zip(scenes, captions, strict=True)]
    answers = ask([(scene, [*said, last[scene.seed].prompt]) for scene, said in talks])
    for scene, said in zip(scenes, answers, strict=True):
        yield "conversation", said == last[scene.seed].answer


def answer(network: Any, processor: Any, talks: Sequence[tuple[Scene, list[str]]]) -> list[str]:
    """Answers the last question of conversations, in batches, greedily.

    Args:
        network: The model.
        processor: Its processor.
        talks: Scenes, and what is said about each: questions and answers in turn, a question last.
    """
    answers: list[str] = []
    for start in range(0, len(talks), BATCH):
        inputs = processor.apply_chat_template(
            [as_messages(scene, said) for scene, said in talks[start : start + BATCH]],
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
        output = network.generate(**inputs, do_sample=False, max_new_tokens=64)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    return answers


def as_messages(scene: Scene, said: Sequence[str]) -> list[dict[str, Any]]:
    """A conversation about a scene as transformers' chat templates take it, the image in its first question."""
    image = {"type": "image", "image": Image.fromarray(scene.image)}
    return [
        {
            "role": "assistant" if place % 2 else "user",
            "content": [*([] if place else [image]), {"type": "text", "text": text}],
        }
        for place, text in enumerate(said)
    ]


def as_markdown(results: dict[str, Any]) -> str:
    """The measurements as two tables."""
    rows = ["| features of single things, logistic probe | shape (of 8) | color (of 8) |", "|---|---|---|"]
    for name, scores in results["probes"].items():
        cells = [f"{scores[kind]['accuracy']} % (layer {scores[kind]['layer']})" for kind in ("shape", "color")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += ["", "| language, greedy, word for word | right |", "|---|---|"]
    asked = results["language"]
    rows += [f"| {label} | {asked[kind]} % |" for kind, label in LABELS.items() if kind in asked]
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
