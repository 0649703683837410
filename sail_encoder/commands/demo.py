"""`sail demo`: the main job on two photographs that are on every machine, without a network."""

from pathlib import Path


def demo(out: str = "demo") -> int:
    """Extracts features of two photographs, and draws them.

    The photographs are scikit-learn's sample images. The same with files of your own:
    `sail extract FOLDER --out OUT` and `sail pca IMAGE`.

    Args:
        out: Folder for photographs, features and pictures.

    Returns:
        Exit status of the extraction.
    """
    from sail_encoder.io.refusals import check_writable, explain_refusals

    photographs = Path(out) / "photographs"
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
    status = extract([str(photographs)], str(Path(out) / "features"), overwrite=True)
    for photograph in sorted(photographs.glob("*.png")):
        pca([str(photograph)], str(Path(out) / f"{photograph.stem}_pca.png"))
    return status
