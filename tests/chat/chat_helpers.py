"""What tests of chat share: short answers, questions, and a scene to ask about."""

import json

from evals.scenes import draw_scene
from sail_encoder import Sampling

SHORT = Sampling(max_new_tokens=12)


QUESTIONS = [
    "Describe the image.",
    "What color is it?",
    "How big is it?",
    "Where is it?",
    "What shape is it?",
    "Is there a red star?",
    "What is the background like?",
    "How many things are there?",
    "Which shape do you see?",
    "What is in the center?",
]


def scene(seed=3):
    return draw_scene(seed, things=1, height=112, width=154).image


def answers_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
