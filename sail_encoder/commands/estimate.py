"""Cost of a run before it starts: patches, FLOPs, time and disk."""

import time
from collections.abc import Sequence
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
    spec, features = resolve_features(model, layers, resize, max_tokens, pool=pool, store_dtype=store_dtype)
    if source:
        from sail_encoder.images.sources import list_images

        listed = list_images(source).images
        count = images or len(listed)
        patches, grid = _look_at(listed, spec, features)
        reading = _reading_time(listed, spec, features, count, readers)
    else:
        count, reading = images or IMAGES, None
        rows, columns = spec.grid(sides, features.size)
        patches, grid = rows * columns, f"{rows}x{columns} = {rows * columns} patches of {spec.patch_size} px"
    _print_estimate(spec, features, patches, grid, count, device, reading)
    return 0


def _look_at(listed: Sequence[ImageFile], spec: BackboneSpec, features: FeatureSpec) -> tuple[float, str]:
    """Patches per image on average, by the sizes of some, and the same in words."""
    from sail_encoder.extraction.cost import look_at_some

    patches, count, remark = look_at_some(listed, spec, features.size)
    each = f"{patches:,.0f} patches of {spec.patch_size} px per image"
    return patches, f"{each}, of {count:,} that were looked at{remark}"


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


def _reading_time(
    listed: Sequence[ImageFile],
    spec: BackboneSpec,
    features: FeatureSpec,
    images: int,
    readers: int | Literal["auto"],
) -> tuple[float, str]:
    """Seconds that reading takes, by the time that some images take, and the same in words.

    Raises:
        UserError: If none can be read.
    """
    from sail_encoder.io.devices import count_readers

    each, read = _measure_reading(listed[:: max(1, len(listed) // READ)][:READ], spec, features)
    threads = count_readers() if readers == "auto" else readers
    seconds = images * each / threads
    measured = f"{1000 * each:,.3g} ms per image, measured on {read}"
    return seconds, f"{_format_seconds(seconds)} in {threads} threads ({measured})"


def _print_estimate(
    spec: BackboneSpec,
    features: FeatureSpec,
    patches: float,
    grid: str,
    images: int,
    device: str,
    reading: tuple[float, str] | None,
) -> None:
    from sail_encoder.extraction.cost import feature_bytes

    flops = spec.flops(round(patches), features.depth)
    rate, origin = _matrix_rate(device)
    positions = patches if features.pool == "none" else 1
    each = feature_bytes(positions, spec.channels(features.pool), len(features.layers), features.store_dtype)
    computing = images * flops / rate
    not_counted = "reading and decoding are not counted; name images, and some are read to measure it"
    reading_seconds, about_reading = reading or (0.0, not_counted)
    seconds = max(computing, reading_seconds)
    print(f"grid        {grid}")
    print(f"layers      {features.depth} of {spec.num_layers} are computed, {len(features.layers)} stored")
    print(f"compute     {flops / 1e9:,.1f} GFLOP per image, {images * flops:.3g} FLOP in all")
    print(f"time        {_format_seconds(computing)} at {rate / 1e12:,.3g} TFLOP/s ({origin})")
    print(f"reading     {about_reading}")
    if reading:
        slower = "reading" if reading_seconds > computing else "computing"
        print(
            f"in all      {_format_seconds(seconds)}: images are read while others are computed, and {slower} is slower"
        )
    print(f"speed       {images / seconds:,.3g} images/s")
    print(f"disk        {format_bytes(images * each)} as {features.store_dtype}")
    print(f"weights     {format_bytes(2 * spec.parameters(features.depth))} in bfloat16, twice that in float32")


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
