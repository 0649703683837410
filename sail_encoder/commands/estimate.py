"""Cost of a run before it starts: patches, FLOPs, time and disk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec, Pooling
from sail_encoder.images.decoding import read_image
from sail_encoder.images.files import ImageFile
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import ImageError, UserError, require_positive
from sail_encoder.io.files import format_bytes

PEAK_TFLOPS = {
    "h200": 989.0,
    "h100": 989.0,
    "a100": 312.0,
    "l40s": 362.0,
    "l4": 121.0,
    "rtx4090": 165.0,
    "v100": 125.0,
    "t4": 65.0,
}
"""Dense half-precision matrix rates from the makers' data sheets, without sparsity."""

EXPECTED_SHARE = 0.6
"""Share of a data sheet's rate that a long run of large matrix products reaches."""


READ = 16
"""Images at most that are read to measure how long that takes."""

IMAGES, SIZE = 1_000_000, "448x448"
"""How many images there are, and their size, where neither images nor options say."""


def estimate(
    model: str = "sail-tiny",
    images: int | None = None,
    size: str | None = None,
    layers: str = "-1",
    pool: Pooling = "none",
    store_dtype: Literal["float16", "float32"] = "float16",
    resize: str = "auto",
    max_tokens: int | None = None,
    device: str = "auto",
    source: list[str] | None = None,
    readers: int | Literal["auto"] = "auto",
) -> int:
    """Estimates time, FLOPs and disk space for extracting features.

    Of images that are named, sizes are looked at, and some are read, so that the time counts reading and decoding on
    this machine; without any, it does not.

    Args:
        model: As in sail extract; only its configuration is read.
        images: How many images; by default as many as are named, or 1,000,000.
        size: Height and width of an image in pixels, such as 480x640; where no images are named, 448x448 by default.
        layers: As in sail extract.
        pool: As in sail extract.
        store_dtype: As in sail extract.
        resize: As in sail extract.
        max_tokens: As in sail extract.
        device: auto or cpu (this machine, whose matrix rate is measured), or a GPU by name: h200, h100, a100, l40s,
            l4, rtx4090, v100, t4.
        source: Image files, folders, globs, lists or shards, as in sail extract.
        readers: Threads that read images; auto is one for each core, 16 at most.

    Returns:
        Exit status 0.
    """
    from sail_encoder.backbones.registry import resolve_features

    for name, value in (("images", images), ("readers", readers)):
        if isinstance(value, int):
            require_positive(name, value)
    _check_device(device)
    if source and size is not None:
        raise UserError(
            f"--size {size} has no effect with images, which have sizes of their own; leave one of them out"
        )
    if not source and readers != "auto":
        raise UserError(f"--readers {readers} has no effect without images, of which some are read; name some")
    sides = Resize.parse(size or SIZE).fixed
    if sides is None:
        raise UserError(f"size '{size}' is not understood; use a side such as 448, or 480x640")
    spec, features = resolve_features(model, layers, resize, max_tokens, pool=pool)
    if source:
        seen = _look_at(source, spec, features)
        _print_estimate(spec, features, store_dtype, seen, images or seen.count, device, readers)
    else:
        rows, columns = spec.grid(sides, features.size)
        seen = _Seen(rows * columns, f"{rows}x{columns} = {rows * columns} patches of {spec.patch_size} px")
        _print_estimate(spec, features, store_dtype, seen, images or IMAGES, device, readers)
    return 0


@dataclass(frozen=True)
class _Seen:
    """What is known of the images.

    Attributes:
        patches: Patches per image, on average.
        grid: The same in words.
        count: How many images are named.
        seconds: Time to read one of them, decode it and bring it to size; None where none is named.
        read: How many were read to measure that.
        note: Remark on images that cannot be read.
    """

    patches: float
    grid: str
    count: int = 0
    seconds: float | None = None
    read: int = 0
    note: str = ""


def _look_at(source: list[str], spec: BackboneSpec, features: FeatureSpec) -> _Seen:
    """Looks at the sizes of some images, and reads a few of these.

    Raises:
        UserError: If none can be read.
    """
    from sail_encoder.extraction.cost import look_at_some
    from sail_encoder.images.sources import list_images

    listed = list_images(source).images
    sample = look_at_some(listed, spec, features.size)
    seconds, read = _measure_reading(listed[:: max(1, len(listed) // READ)][:READ], spec, features)
    grid = f"{sample.patches:,.0f} patches of {spec.patch_size} px per image, of {sample.count:,} that were looked at"
    return _Seen(sample.patches, grid, len(listed), seconds, read, sample.note)


def _measure_reading(images: Sequence[ImageFile], spec: BackboneSpec, features: FeatureSpec) -> tuple[float, int]:
    """Seconds per image to read, decode and resize, in one thread, and of how many that is the mean."""
    resample = Image.Resampling[spec.resample]
    times: list[float] = []
    for image in images:
        started = time.perf_counter()
        try:
            pixels, _ = read_image(image.open())
        except ImageError:
            continue
        rows, columns = spec.grid((pixels.height, pixels.width), features.size)
        pixels.resize((columns * spec.patch_size, rows * spec.patch_size), resample)
        times.append(time.perf_counter() - started)
    if not times:
        raise UserError(f"none of the {len(images)} images that were tried can be read, such as {images[0].key}")
    return sum(times) / len(times), len(times)


def _print_estimate(
    spec: BackboneSpec,
    features: FeatureSpec,
    store_dtype: str,
    seen: _Seen,
    images: int,
    device: str,
    readers: int | Literal["auto"],
) -> None:
    from sail_encoder.extraction.cost import feature_bytes

    flops = spec.flops(round(seen.patches), features.depth)
    rate, origin = _matrix_rate(device)
    positions = seen.patches if features.pool == "none" else 1
    stored = images * feature_bytes(positions, spec.channels(features.pool), len(features.layers), store_dtype)
    computing = images * flops / rate
    reading, about_reading = _reading_time(seen, images, readers)
    seconds = max(computing, reading)
    print(f"grid        {seen.grid}{seen.note}")
    print(f"layers      {features.depth} of {spec.num_layers} are computed, {len(features.layers)} stored")
    print(f"compute     {flops / 1e9:,.1f} GFLOP per image, {images * flops:.3g} FLOP in all")
    print(f"time        {_format_seconds(computing)} at {rate / 1e12:,.3g} TFLOP/s ({origin})")
    print(f"reading     {about_reading}")
    if seen.seconds is not None:
        slower = "reading" if reading > computing else "computing"
        print(
            f"in all      {_format_seconds(seconds)}: images are read while others are computed, and {slower} is slower"
        )
    print(f"speed       {images / seconds:,.3g} images/s")
    print(f"disk        {format_bytes(stored)} as {store_dtype}")
    print(f"weights     {format_bytes(2 * spec.parameters(features.depth))} in bfloat16, twice that in float32")


def _reading_time(seen: _Seen, images: int, readers: int | Literal["auto"]) -> tuple[float, str]:
    """Seconds that reading takes, 0 where nothing is known of it, and what is to be said about it."""
    from sail_encoder.io.devices import count_readers

    if seen.seconds is None:
        return 0.0, "reading and decoding are not counted; name images, and some are read to measure it"
    threads = count_readers() if readers == "auto" else readers
    seconds = images * seen.seconds / threads
    each = f"{1000 * seen.seconds:,.3g} ms per image, measured on {seen.read}"
    return seconds, f"{_format_seconds(seconds)} in {threads} threads ({each})"


def _check_device(device: str) -> None:
    if _device_name(device) not in ("auto", "cpu", "cuda", *PEAK_TFLOPS):
        raise UserError(f"device '{device}' is unknown; use auto, cpu or one of {', '.join(PEAK_TFLOPS)}")


def _device_name(device: str) -> str:
    return device.lower().replace(" ", "")


def _matrix_rate(device: str) -> tuple[float, str]:
    """Floating-point operations a second of a device, and where that is known from."""
    name = _device_name(device)
    if name in PEAK_TFLOPS:
        peak = PEAK_TFLOPS[name]
        return peak * 1e12 * EXPECTED_SHARE, f"{EXPECTED_SHARE:.0%} of the data sheet's {peak:g}"
    from sail_encoder.backbones.registry import announce
    from sail_encoder.io.devices import choose_device, choose_dtype, measure_matrix_rate

    announce("torch")
    here = choose_device(name)
    dtype = choose_dtype("auto", here)
    return measure_matrix_rate(here, dtype), f"measured on {here} in {str(dtype).removeprefix('torch.')}"


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:,.1f} minutes"
    return f"{seconds / 3600:,.1f} hours"
