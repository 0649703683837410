"""A user's mistake is one line with status 2, found before torch, transformers or timm is imported.

All wrong calls run in one process in which none of the three can be imported.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import noise
from PIL import Image

from sail_cli import COMMANDS
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.hub import TINY_FOLDER

RUNNER = """
import contextlib, io, json, sys, traceback

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "timm"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
from sail_cli import main

for line in sys.stdin:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
        try:
            status = main(json.loads(line))
        except BaseException:
            status = traceback.format_exc()
    print(json.dumps([status, errors.getvalue()]))
"""

OUT = ["--out", "out"]
HEAD = [*OUT, "--head", "head"]
TRAIN = ["segment", "train", "scenes", *OUT]
DIGITS = ["digits", *OUT]
COMPARE = ["compare", *DIGITS, "--models"]

MISTAKES = [
    # Paths.
    (["extract", "nowhere", *OUT], "no file or folder nowhere"),
    (["extract", "x.png", "--out", "x.png"], "cannot write x.png: File exists"),
    (["extract", "x.png", "--out", "others"], "others holds a run with other settings: layers was [0], now [5]"),
    (["extract", "x.png", "--out", "broken", "--overwrite"], "run.json is damaged, or of another program"),
    (["probe", "nowhere", *OUT], "no data set 'nowhere'"),
    (["probe", "digits", "--out", "x.png/o"], "cannot write x.png/o: Not a directory"),
    (["sweep", "nowhere", *OUT], "no data set 'nowhere'"),
    (["sweep", "digits", "--out", "x.png"], "cannot write x.png: File exists"),
    (["compare", "nowhere", *OUT, "--models", "sail-tiny"], "no data set 'nowhere'"),
    ([*COMPARE, "sail-tiny", "--masks", "nowhere"], "no folder nowhere"),
    ([*COMPARE, "sail-tiny,raw/14,sail-tiny"], "--models names sail-tiny twice; leave one of them out"),
    ([*COMPARE, "raw/14,sail-tny"], "no model 'sail-tny'"),
    ([*COMPARE, "sail-tiny", "--random-weights", "raw/14"], "names raw/14, which is none of --models sail-tiny"),
    (["segment", "train", "nowhere", *OUT], "no folder nowhere"),
    (["segment", "train", "photos", *OUT], "photos has no train split in this layout"),
    (["segment", "train", "scenes", "--out", "x.png"], "--out cannot be x.png, because"),
    (["segment", "eval", "nowhere", "--head", "head"], "no folder nowhere"),
    (["segment", "eval", "photos", "--head", "nowhere"], "nowhere holds no head that can be read"),
    (["segment", "predict", "nowhere", *HEAD], "no file or folder nowhere"),
    (["segment", "predict", "x.png", "--head", "broken", *OUT], "broken holds no head that can be read"),
    (["segment", "predict", "x.png", "--head", "sail-tiny", *OUT], "sail-tiny is a Pixel-SAIL, which has no classes"),
    (
        ["segment", "eval", "scenes-referring", "--head", "sail-tiny", "--window", "56"],
        "--window has no effect on sail-tiny",
    ),
    (["segment", "eval", "photos", "--head", "sail-tiny"], "photos has no file of referring expressions"),
    (["segment", "predict", "x.png", "--head", "head", "--out", "x.png"], "--out cannot be x.png, because"),
    (["chat", "nowhere.jpg", "hi"], "nowhere.jpg: no such file"),
    (["chat", "--input", "nowhere.jsonl", "--output", "a.jsonl"], "no file nowhere.jsonl"),
    (["pca", "nowhere.jpg"], "nowhere.jpg: no such file"),
    (["pca", "x.png", "--out", "x.png/a.png"], "cannot write x.png: File exists"),
    (["similarity", "nowhere.jpg", "--at", "0,0"], "nowhere.jpg: no such file"),
    (["similarity", "x.png", "--at", "0,0", "--to", "x.png", "--to", "nowhere.jpg"], "nowhere.jpg: no such file"),
    (["pca", "x.png", "nowhere.jpg"], "nowhere.jpg: no such file"),
    (["pca", "nowhere/*.jpg"], "nothing matches nowhere/*.jpg"),
    (["pca"], "nothing to draw; name images or folders, or a folder of sail extract with --features"),
    (["pca", "--features", "photos"], "photos has no run.json"),
    (["pca", "x.png", "--out", "photos"], "--out photos names no kind of picture"),
    (["match", "x.png", "nowhere.jpg"], "nowhere.jpg: no such file"),
    (["match", "x.png"], "second is missing"),
    (["segment", "refer", "nowhere.jpg", "a circle", *OUT, "--model", "sail-tiny"], "nowhere.jpg: no such file"),
    (["convert", "sail-tiny", "x.png"], "x.png is a file; name a new folder"),
    (["convert", "sail-tiny", "x.png/a"], "cannot write x.png/a: Not a directory"),
    (["demo", "--out", "x.png"], "cannot write x.png/photographs: Not a directory"),
    (["extract", "--config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
    # Models: no such name, a folder of another model, damaged settings, another family.
    (["extract", "x.png", *OUT, "--model", "sail-tny"], "no model 'sail-tny'"),
    (["extract", "x.png", *OUT, "--model", "photos"], "photos has no config.json, so it is no checkpoint"),
    (["probe", *DIGITS, "--model", "bert"], "bert is a 'bert' checkpoint, not SAIL"),
    (["sweep", *DIGITS, "--model", "broken"], "config.json is not valid JSON"),
    ([*TRAIN, "--model", "raw/0"], "no raw patches 'raw/0'"),
    (["segment", "eval", "photos", "--head", "head", "--model", "bert"], "bert is a 'bert' checkpoint, not SAIL"),
    (["segment", "predict", "x.png", *HEAD, "--model", "sail-tny"], "no model 'sail-tny'"),
    (["chat", "x.png", "hi", "--model", "null"], "config.json holds no fields; download it again"),
    (["chat", "x.png", "hi", "--model", "timm/vit_tiny_patch16_224"], "has no language model; models that chat are"),
    (["pca", "x.png", "--models", "flat"], "config.json: num_hidden_layers cannot be 0; allowed is a whole number"),
    (["pca", "x.png", "--models", "sail-tiny,sail-tny"], "no model 'sail-tny'"),
    (["pca", "x.png", "--models", "timm/vit_tiny_patch16_224,sail-tny"], "no model 'sail-tny'"),
    (["similarity", "x.png", "--at", "0,0", "--model", "text"], "hidden_size cannot be '64'"),
    (["match", "x.png", "x.png", "--model", "bert"], "bert is a 'bert' checkpoint, not SAIL"),
    (["info", "sail-tny"], "no model 'sail-tny'"),
    (["convert", "raw/14", "out"], "raw/14 is no SAIL checkpoint"),
    (["estimate", "--model", "bert"], "bert is a 'bert' checkpoint, not SAIL"),
    # Layers.
    (["extract", "x.png", *OUT, "--layers", "6"], "layer 6 does not exist; this model has -6 to 5"),
    (["extract", "x.png", *OUT, "--layers", "first"], "layers 'first' are not understood"),
    (["extract", "x.png", *OUT, "--layers", "top", "--model", "timm/x"], "layers 'top' are not understood"),
    (["probe", *DIGITS, "--layers", "9"], "layer 9 does not exist"),
    ([*TRAIN, "--layers", "last7"], "layers 'last7' need 1 to 6 layers"),
    (["pca", "x.png", "--layers", "-7"], "layer -7 does not exist"),
    (["pca", "x.png", "--layers", "0,6"], "layer 6 does not exist"),
    (["similarity", "x.png", "--at", "0,0", "--layer", "6"], "layer 6 does not exist"),
    (["match", "x.png", "x.png", "--layer", "6"], "layer 6 does not exist"),
    (["estimate", "--layers", "6"], "layer 6 does not exist"),
    (["convert", "sail-tiny", "out", "--encoder_only", "--layers", "7"], "layers=7 cannot be loaded"),
    # Devices.
    (["extract", "x.png", *OUT, "--devices", "cuda:0,gpu1"], "device 'gpu1' is not understood"),
    (["extract", "x.png", *OUT, "--devices", "meta"], "device 'meta' is not understood"),
    (["probe", *DIGITS, "--device", "cuda:"], "device 'cuda:' is not understood"),
    (["sweep", *DIGITS, "--device", "cuda:x"], "device 'cuda:x' is not understood"),
    ([*TRAIN, "--device", "gpu"], "device 'gpu' is not understood"),
    (["segment", "eval", "photos", "--head", "head", "--device", "gpu"], "device 'gpu' is not understood"),
    (["segment", "predict", "x.png", *HEAD, "--device", "gpu"], "device 'gpu' is not understood"),
    (["chat", "x.png", "hi", "--device", "gpu"], "device 'gpu' is not understood"),
    (["estimate", "--device", "abacus"], "device 'abacus' is unknown"),
    # Shares of a run.
    (["extract", "x.png", *OUT, "--shard", "4/4"], "shard '4/4' is not understood"),
    (["extract", "x.png", *OUT, "--shard", "one"], "shard 'one' is not understood"),
    (["extract", "x.png", *OUT, "--shard", "0/2", "--overwrite"], "would delete what the other shards have written"),
    # Values that a type allows, but nothing else.
    (["extract", "x.png", *OUT, "--readers", "0"], "--readers cannot be 0; allowed is 1 or more"),
    (["extract", "x.png", *OUT, "--resize", "big"], "resize 'big' is not understood"),
    (["extract", "x.png", *OUT, "--resize", "225"], "not a multiple of the patch size 14; the nearest is 224x224"),
    (["extract", "x.png", *OUT, "--engine", "ray", "--devices", "cpu"], "--engine ray takes all of the cluster's"),
    (["probe", *DIGITS, "--probes", "linaer"], "no head 'linaer'; there is linear"),
    (["probe", *DIGITS, "--crop", "224"], "--crop has no effect without --online true"),
    (["probe", *DIGITS, "--val_share", "1"], "val_share is 1"),
    (["sweep", *DIGITS, "--probes", "linaer"], "no head 'linaer'; there is linear"),
    (["sweep", *DIGITS, "--max_tokens", "0"], "max_tokens is 0"),
    ([*TRAIN, "--head", "lineer"], "no head 'lineer'; there is linear, upernet, knn"),
    ([*TRAIN, "--crop", "100"], "--crop: resize 100x100 is not a multiple of the patch size 14"),
    ([*TRAIN, "--stride", "14"], "--stride 14 needs a --window"),
    (["segment", "eval", "photos", "--head", "head", "--scales", "[0]"], "--scales cannot be [0.0]"),
    (["segment", "eval", "photos", "--head", "head", "--overlays", "-1"], "--overlays cannot be -1"),
    (["segment", "predict", "x.png", *HEAD, "--window", "15"], "--window: resize 15x15 is not a multiple"),
    (["chat", "x.png", " "], "the prompt is empty"),
    (["chat", "x.png", "hi", "--top_p", "0"], "top_p 0.0: allowed is"),
    (["chat", "x.png", "hi", "--max_tokens", "0"], "max_tokens is 0"),
    (["chat", "x.png", "hi", "--sliding_window", "0"], "--sliding_window cannot be 0"),
    (["pca", "x.png", "--out", "x.abc"], "--out x.abc names no kind of picture"),
    (["pca", "x.png", "--foreground", "2"], "--foreground 2 is not understood; use pc1, or a share from 0 to 1"),
    (["pca", "x.png", "--limit", "0"], "--limit cannot be 0; allowed is 1 or more"),
    (["pca", "x.png", "--dpi", "5"], "--dpi cannot be 5; allowed is 20 to 1200"),
    (["pca", "--features", "others", "--resize", "224"], "--resize has no effect with --features"),
    (["similarity", "x.png"], "no patch to compare with; name one with --at ROW,COLUMN or --at-pixel X,Y"),
    (["similarity", "x.png", "--at", "3"], "--at 3 is no patch"),
    (["similarity", "x.png", "--at", "0,0 9,0"], "--at 9,0: patch (9, 0) is outside the 3x3 grid"),
    (["similarity", "x.png", "--at-pixel", "1,y"], "--at-pixel 1,y is no point; give its x and y in pixels"),
    (["similarity", "x.png", "--at-pixel", "40,3"], "--at-pixel 40,3 is outside the image; x goes from 0 to 39"),
    (["match", "x.png", "x.png", "--strongest", "0"], "--strongest cannot be 0; allowed is 1 or more"),
    (["convert", "sail-tiny", "out", "--layers", "2"], "--layers needs --encoder_only true"),
    (["convert", "sail-tiny", "out", "--max_shard_size", "5"], "use a size such as 500MB or 5GB"),
    (["estimate", "--images", "0"], "--images cannot be 0"),
    (["estimate", "--size", "native"], "size 'native' is not understood"),
]

WRONG_OPTIONS = [
    ([*name.split(), *option], message)
    for name in COMMANDS
    for option, message in (
        (["--oout", "o"], "no option --oout"),
        (["-o", "o"], "no option -o"),
        (["--config"], "--config needs a value"),
    )
]
CASES = MISTAKES + WRONG_OPTIONS


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A photograph, a folder of them, a run, a head, and checkpoints that are none."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "photos").mkdir()
    Image.fromarray(noise(30, 40)).save(folder / "x.png")
    config = json.loads((TINY_FOLDER / "config.json").read_text())
    checkpoints = {
        "bert": json.dumps({"model_type": "bert"}),
        "broken": "{",
        "null": "null",
        "flat": json.dumps({**config, "num_hidden_layers": 0}),
        "text": json.dumps({**config, "hidden_size": "64"}),
    }
    for name, text in checkpoints.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    for name in ("run.json", "head.json"):
        (folder / "broken" / name).write_text("{")
    (folder / "others").mkdir()
    settings = {**FeatureSpec("sail-tiny", (0,)).to_json(), "root": str(folder)}
    (folder / "others" / "run.json").write_text(
        json.dumps({"format": 2, "command": "extract", "settings": settings, "runs": []})
    )
    (folder / "head").mkdir()
    source = {"backbone": "sail-tiny", "weights": "", "layers": [5], "resize": "native"}
    head = {"kind": "linear", "settings": {"classes": ["a", "b"]}, "source": source}
    (folder / "head" / "head.json").write_text(json.dumps(head))
    return folder


@pytest.fixture(scope="module")
def outcomes(workplace):
    """For each case the exit status, or a traceback, and what was printed."""
    before = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    root = Path(__file__).parents[1]
    lines = "\n".join(json.dumps(arguments) for arguments, _ in [*CASES, (["info", "sail-tiny"], "")])
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{RUNNER}"],
        input=lines,
        capture_output=True,
        text=True,
        cwd=workplace,
    )
    assert ended.returncode == 0, ended.stderr
    # The last one is no mistake, so that the refused import is an unexpected error, which leaves its report.
    [report] = workplace.glob("sail-error-*.txt")
    report.unlink()
    assert {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()} == before
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[" ".join(arguments) for arguments, _ in CASES])
def test_it_is_one_line_before_anything_heavy_is_imported(index, outcomes):
    status, printed = outcomes[index]
    assert status == 2, status
    [line] = printed.splitlines()
    assert line.startswith("sail: ")
    assert CASES[index][1] in line


def test_what_is_no_mistake_needs_them(outcomes):
    """So the hook does refuse them, and what is loaded is said before."""
    _, printed = outcomes[len(CASES)]
    assert printed.startswith("loading sail-tiny ...\n")
    assert "torch is imported" in printed


def test_every_command_is_tried():
    tried = {" ".join(arguments[:2]) if arguments[0] == "segment" else arguments[0] for arguments, _ in MISTAKES}
    assert tried == COMMANDS.keys() - {"doctor"}
