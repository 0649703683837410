"""Generation against the published way, and against what memory allows.

    python -m benchmarks.chat                     # 8 layers x 1024, on this machine's processor; about two minutes
    python -m benchmarks.chat --device cuda --size 7b --precision bfloat16 --compile

Measured side by side in one run, in turns, the median of the rounds, greedily at batch 1:

- prefill: an image and a prompt up to the first token, in tokens a second;
- a second question: the same image, whose encoding is there already;
- decode: every further token. All weights are read for each, so memory bandwidth is the limit; it is measured with a
  copy of a large buffer.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from benchmarks import published
from benchmarks.models import SIZES, build_model, synchronize
from sail_encoder.images.resizing import Size
from sail_encoder.models.cache_name import CACHE, fork_cache
from sail_encoder.models.sail.modeling_sail import SailForCausalLM

BUFFER_BYTES = 2**29


@dataclass
class Setting:
    """What is measured."""

    model: SailForCausalLM
    grid: Size
    pixels: Tensor
    prompt: Tensor
    new_tokens: int

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @property
    def input_ids(self) -> Tensor:
        start, patch, end = self.model.config.vision_token_ids
        image = torch.tensor([start, *[patch] * (self.grid[0] * self.grid[1]), end], device=self.device)
        return torch.cat((image, self.prompt))[None]

    def cache(self, kind: str) -> Cache:
        if kind == "dynamic":
            return DynamicCache(config=self.model.config)
        return StaticCache(self.model.config, max_cache_len=self.input_ids.shape[1] + self.new_tokens)


def generate(
    setting: Setting, new_tokens: int, cache: Cache, compiled: bool = False, image_is_cached: bool = False
) -> list[int]:
    """Our way: `generate`, as a user calls it."""
    output = setting.model.generate(
        input_ids=setting.input_ids,
        attention_mask=torch.ones_like(setting.input_ids),
        pixel_values=None if image_is_cached else setting.pixels,
        image_grid_hw=torch.tensor([setting.grid]),
        **{CACHE: cache},
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        disable_compile=not compiled,
        pad_token_id=0,
    )
    return output[0, setting.input_ids.shape[1] :].tolist()


def timed(device: torch.device, run: Callable[[], object]) -> float:
    """Seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of a large buffer reads and writes."""
    buffer = torch.zeros(BUFFER_BYTES // 4, device=device)
    target = torch.empty_like(buffer)
    return 2 * BUFFER_BYTES / min(timed(device, lambda: target.copy_(buffer)) for _ in range(10))


def bytes_per_token(model: SailForCausalLM) -> int:
    """Weights that a token needs: all but the embeddings, of which it takes a row."""
    skipped = (model.model.embed_tokens.weight, model.model.vis_embed.weight)
    needed = sum(weight.nbytes for weight in model.parameters() if not any(weight is other for other in skipped))
    return needed + (model.lm_head.weight.nbytes if model.config.tie_word_embeddings else 0)


def contenders(setting: Setting, caches: dict[str, bool]) -> dict[str, Callable[[int], object]]:
    """Name and way of answering with so many tokens."""

    def published_way(new_tokens: int) -> None:
        prefix = DynamicCache()
        published.encode_image(setting.model, setting.pixels, setting.grid, prefix)
        published.answer(setting.model, prefix, setting.grid, setting.prompt, new_tokens)

    def our_way(new_tokens: int, kind: str, compiled: bool) -> None:
        generate(setting, new_tokens, setting.cache(kind), compiled)

    ways: dict[str, Callable[[int], object]] = {"published": published_way}
    for kind, compiled in caches.items():
        name = f"ours, {kind} cache{', compiled' if compiled else ''}"
        ways[name] = partial(our_way, kind=kind, compiled=compiled)
    return ways


def second_question(setting: Setting) -> dict[str, Callable[[], object]]:
    """The first token of another answer about an image that is encoded already."""
    theirs = DynamicCache()
    published.encode_image(setting.model, setting.pixels, setting.grid, theirs)
    with torch.no_grad():
        mine = setting.model.model.encode_prefix(setting.pixels, torch.tensor([setting.grid]))

    def ours() -> None:
        generate(setting, 1, fork_cache(mine), image_is_cached=True)

    return {
        "published": partial(published.answer, setting.model, theirs, setting.grid, setting.prompt, 1),
        "ours": ours,
    }


def compare(setting: Setting, caches: dict[str, bool], rounds: int) -> None:
    """Prints rates and ratios."""
    ways = contenders(setting, caches)
    first: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, answer in ways.items():
            times = [timed(setting.device, partial(answer, count)) for count in (1, setting.new_tokens)]
            if turn:
                first[name].append(times[0])
                whole[name].append(times[1])
    speed, size = bandwidth(setting.device), bytes_per_token(setting.model)
    tokens = setting.input_ids.shape[1]
    print(f"bandwidth {speed / 1e9:.1f} GB/s, {size / 1e9:.2f} GB a token: at most {speed / size:.1f} tokens/s")
    prefill = {name: tokens / statistics.median(times) for name, times in first.items()}
    decode = {
        name: (setting.new_tokens - 1) / (statistics.median(whole[name]) - statistics.median(first[name]))
        for name in ways
    }
    for name in ways:
        print(
            f"{name:32} prefill {prefill[name]:8.0f} tokens/s ({prefill[name] / prefill['published']:.2f} x published)"
            f"   decode {decode[name]:7.1f} tokens/s ({decode[name] / decode['published']:.2f} x published, "
            f"{decode[name] * size / speed:.2f} of the limit)"
        )


def compare_second_question(setting: Setting, rounds: int) -> None:
    """Prints the time to the first token of a second question."""
    ways = second_question(setting)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, answer in ways.items():
            seconds = timed(setting.device, answer)
            if turn:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"second question, first token: {1000 * median['ours']:.0f} ms, published {1000 * median['published']:.0f} ms "
        f"({median['published'] / median['ours']:.2f} x)"
    )


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--grid", type=int, nargs=2, default=(32, 32))
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also a static cache with compiled decoding")
    arguments = parser.parse_args()
    if arguments.new_tokens < 16:
        parser.error(f"--new_tokens {arguments.new_tokens} is too few to tell decoding from noise; take 16 or more")
    device = torch.device(arguments.device)
    model = build_model(arguments.size, device, getattr(torch, arguments.precision))
    grid: Size = tuple(arguments.grid)
    pixels = torch.randn(grid[0] * grid[1], model.config.patch_dim, device=device)
    prompt = torch.arange(100, 100 + arguments.prompt_tokens, device=device)
    setting = Setting(model, grid, pixels, prompt, arguments.new_tokens)
    caches = {"dynamic": False, "static": False}
    compare(setting, caches, arguments.rounds)
    if arguments.compile:
        compare(setting, {"static": True}, arguments.rounds)
    compare_second_question(setting, arguments.rounds)


if __name__ == "__main__":
    main()
