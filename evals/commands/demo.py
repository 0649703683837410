"""`sail demo`: the main job on two photographs that are on every machine, or a page to look at features."""

import importlib.util
import sys
from pathlib import Path

from sail_encoder.io.errors import UserError

_HOST, _PORT = "127.0.0.1", 7860

_ENCODINGS, _PHOTOS = 2**30, 256 * 2**20
"""Bytes of encodings and of uploaded images that a page keeps at most."""


def demo(
    out: str | None = None,
    page: bool = False,
    model: str | None = None,
    head: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> int:
    """Extracts and draws features of two photographs, or serves a page to look at features.

    The photographs are scikit-learn's sample images. The same with files of your own:
    `sail extract FOLDER --out OUT` and `sail pca IMAGE`. The page (`--page`) shows similarity, components, matches,
    answers and classes of images that are uploaded to it.

    Args:
        out: Folder for photographs, features and pictures; demo by default.
        page: Whether to serve a page instead; needs gradio.
        model: For the page, the model: sail-tiny (the default), a folder, a Hub name such as ByteDance-Seed/SAIL-7B,
            timm/NAME, hf/NAME, or several of them separated by commas.
        head: For the page, a folder that sail segment train has written.
        host: For the page, the address to serve at; this machine alone, 127.0.0.1, by default.
        port: For the page, the port; 7860 by default.

    Returns:
        Exit status of the extraction, or 0.
    """
    if page:
        if out is not None:
            raise UserError(f"--out {out} has no effect with --page, which writes nothing; leave one out")
        return _serve((model or "sail-tiny").split(","), head, host or _HOST, _PORT if port is None else port)
    for name, value in {"model": model, "head": head, "host": host, "port": port}.items():
        if value is not None:
            raise UserError(f"--{name} {value} is for the page; add --page, or leave it out")
    return _extract(Path(out or "demo"))


def _extract(out: Path) -> int:
    """Extracts and draws features of the photographs, and returns the exit status of the extraction."""
    from sail_encoder.io.refusals import check_writable, explain_refusals

    photographs = out / "photographs"
    check_writable(photographs)
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from sail_encoder.commands.extract import extract
    from sail_encoder.commands.pca import pca

    samples = load_sample_images()
    with explain_refusals(photographs):
        photographs.mkdir(parents=True, exist_ok=True)
        for pixels, file in zip(samples.images, samples.filenames, strict=True):
            Image.fromarray(pixels).save(photographs / Path(file).with_suffix(".png").name)
    status = extract([str(photographs)], str(out / "features"), overwrite=True)
    for photograph in sorted(photographs.glob("*.png")):
        pca([str(photograph)], str(out / f"{photograph.stem}_pca.png"))
    return status


def _serve(models: list[str], head: str | None, host: str, port: int) -> int:
    """Serves the page until it is interrupted."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("sail demo --page needs gradio; pip install gradio")
    if not 1 <= port <= 65535:
        raise UserError(f"--port cannot be {port}; allowed is 1 to 65535")
    if head is not None:
        from heads.dense.registry import describe_dense_head

        describe_dense_head(head)
    from evals.page import example_photos, load_segmentation
    from sail_encoder.page.actions import Page
    from sail_encoder.page.encodings import Encoder
    from sail_encoder.page.photos import Photos
    from sail_encoder.page.server import LOCAL_HOSTS, reserve, serve_page

    names = [name.strip() for name in models]
    encoder = Encoder(names, _ENCODINGS)
    # Loading takes minutes for large models, so whether there is a place is seen first.
    with reserve(host, port) as place:
        encoder.load(names[0])
        segment = None if head is None else load_segmentation(head)
        if host not in LOCAL_HOSTS:
            print(f"warning: --host {host} lets everybody who reaches this machine use the page", file=sys.stderr)
        serve_page(Page(encoder, Photos(example_photos(), _PHOTOS), segment), host, place)
    return 0
