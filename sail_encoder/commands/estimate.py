"""Cost of a run before it starts: patches, FLOPs, time and disk."""

from typing import Literal

from sail_encoder.backbones.spec import Pooling
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import UserError, require_positive
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


def estimate(
    model: str = "sail-tiny",
    images: int = 1_000_000,
    size: str = "448x448",
    layers: str = "-1",
    pool: Pooling = "none",
    store_dtype: Literal["float16", "float32"] = "float16",
    resize: str = "auto",
    max_tokens: int | None = None,
    device: str = "auto",
) -> int:
    """Estimates time, FLOPs and disk space for extracting features.

    Args:
        model: As in sail extract; only its configuration is read.
        images: How many images.
        size: Height and width of an image in pixels, such as 480x640.
        layers: As in sail extract.
        pool: As in sail extract.
        store_dtype: As in sail extract.
        resize: As in sail extract.
        max_tokens: As in sail extract.
        device: auto or cpu (this machine, whose matrix rate is measured), or a GPU by name: h200, h100, a100, l40s,
            l4, rtx4090, v100, t4.

    Returns:
        Exit status 0.
    """
    from sail_encoder.backbones.registry import resolve_features
    from sail_encoder.extraction.cost import feature_bytes

    require_positive("images", images)
    _check_device(device)
    sides = Resize.parse(size).fixed
    if sides is None:
        raise UserError(f"size '{size}' is not understood; use a side such as 448, or 480x640")
    spec, features = resolve_features(model, layers, resize, max_tokens, pool=pool)
    rows, columns = spec.grid(sides, features.size)
    flops = spec.flops(rows * columns, features.depth)
    rate, source = _matrix_rate(device)
    stored = (
        feature_bytes(1 if pool != "none" else rows * columns, spec.channels(pool), len(features.layers), store_dtype)
        * images
    )
    seconds = images * flops / rate
    print(f"grid        {rows}x{columns} = {rows * columns} patches of {spec.patch_size} px")
    print(f"layers      {features.depth} of {spec.num_layers} are computed, {len(features.layers)} stored")
    print(f"compute     {flops / 1e9:,.1f} GFLOP an image, {images * flops:.3g} FLOP in all")
    print(f"time        {_format_seconds(seconds)} at {rate / 1e12:,.3g} TFLOP/s ({source})")
    print(f"speed       {images / seconds:,.3g} images/s")
    print(f"disk        {format_bytes(stored)} as {store_dtype}")
    print(f"weights     {format_bytes(2 * spec.parameters(features.depth))} in bfloat16, twice that in float32")
    return 0


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
