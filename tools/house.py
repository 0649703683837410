"""Measures of the code's shape: how far values travel, and how large the pieces are.

    python -m tools.house

Functions and types on an image's way are counted by a tracer: `sail extract` runs on sail-tiny over 400 images and over
600, one after the other in one reader, and what is called once more for each of the further images is called per
image. Forecasts look at 200 images at most, so that they do not count.
"""

import ast
import collections
import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PACKAGES = ("sail_encoder", "heads", "evals", "tools")
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 50

MOST_DATACLASSES = 45 + 5 * 5
"""Those of the house, and five for each feature since: reports, relatives of SAIL, pictures, masks and the page."""

FEW, MANY = 400, 600
"""Images of the two runs that the tracer compares."""

Edge = tuple[str, str]


def sources() -> dict[Path, ast.Module]:
    """Every module of the packages, parsed."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    own = (path for path in paths if (ROOT / "sail_encoder/configs") not in path.parents)
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in own}


def dataclasses_in(modules: dict[Path, ast.Module]) -> list[str]:
    """Names of all dataclasses but transformers' output classes, which have to be some."""
    classes = (node for module in modules.values() for node in ast.walk(module) if isinstance(node, ast.ClassDef))
    made = [node for node in classes if any("dataclass" in ast.unparse(one) for one in node.decorator_list)]
    return [node.name for node in made if not any("Output" in ast.unparse(base) for base in node.bases)]


def long_functions(modules: dict[Path, ast.Module]) -> list[str]:
    """Functions whose body, without signature and docstring, is too long."""
    found = []
    for path, module in modules.items():
        for node in ast.walk(module):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > MOST_LINES_OF_A_FUNCTION:
                    found.append(f"{path}:{node.lineno} {node.name} ({lines})")
    return found


def package_imports(modules: dict[Path, ast.Module]) -> set[Edge]:
    """Pairs of packages inside `sail_encoder` of which the first imports the second, anywhere in its code."""
    edges = set()
    for path, module in modules.items():
        if path.parts[0] != "sail_encoder" or len(path.parts) < 3:
            continue
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sail_encoder."):
                edges.add((path.parts[1], (node.module or "").split(".")[1]))
    return {(one, other) for one, other in edges if one != other}


def mutual(edges: set[Edge]) -> list[str]:
    """Packages that reach each other along imports."""
    reach = set(edges)
    while new := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
        reach |= new
    return sorted({f"{a} <-> {b}" for a, b in reach if a < b and (b, a) in reach})


class CallCounter:
    """Calls of this project's functions and constructors, in all threads, while it is entered."""

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.types: collections.Counter[str] = collections.Counter()
        self._named: dict[CodeType, str] = {}

    def __enter__(self) -> "CallCounter":
        threading.setprofile(self._count)
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _count(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code.co_name == "__init__" and type(frame.f_locals.get("self")).__module__.split(".")[0] in PACKAGES:
            self.types[type(frame.f_locals["self"]).__qualname__] += 1
        elif code.co_filename.startswith(str(ROOT)) and not code.co_name.startswith("<"):
            path = Path(code.co_filename).relative_to(ROOT)
            self.calls[f"{path}:{code.co_qualname if sys.version_info >= (3, 11) else code.co_name}"] += 1


def trace_extraction(images: int, folder: Path) -> CallCounter:
    """Calls of `sail extract` over drawn images of one size."""
    from sail_encoder import extract

    source = folder / f"{images} images"
    source.mkdir()
    rng = np.random.default_rng(0)
    for index in range(images):
        Image.fromarray(rng.integers(0, 255, (42, 56, 3), dtype=np.uint8)).save(source / f"{index}.png")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), CallCounter() as counter:
        extract([str(source)], str(folder / f"out {images}"), readers=1)
    return counter


def per_image(few: collections.Counter[str], many: collections.Counter[str]) -> list[str]:
    """Names that are called at least once more for each of the further images."""
    return sorted(name for name in many if many[name] - few[name] >= MANY - FEW)


def report() -> Iterator[str]:
    """Lines of the table."""
    modules = sources()
    lengths = {path: (ROOT / path).read_text(encoding="utf-8").count("\n") for path in modules}
    allowed = {Path("sail_encoder/models/sail/modeling_sail.py"): 450}
    long = [f"{path} ({count})" for path, count in lengths.items() if count > allowed.get(path, MOST_LINES)]
    yield f"files                     {len(lengths)}, {sum(lengths.values()):,} lines"
    yield f"files over {MOST_LINES} lines      {', '.join(long) or 'none'}"
    yield f"functions over {MOST_LINES_OF_A_FUNCTION} lines   {', '.join(long_functions(modules)) or 'none'}"
    yield f"dataclasses               {len(dataclasses_in(modules))}, at most {MOST_DATACLASSES}"
    yield f"packages in a cycle       {', '.join(mutual(package_imports(modules))) or 'none'}"
    with tempfile.TemporaryDirectory() as name:
        trace_extraction(1, Path(name))
        few, many = trace_extraction(FEW, Path(name)), trace_extraction(MANY, Path(name))
    functions, types = per_image(few.calls, many.calls), per_image(few.types, many.types)
    yield f"functions per image       {len(functions)}: {', '.join(one.partition(':')[2] for one in functions)}"
    yield f"types per image           {len(types)}: {', '.join(types)}"


if __name__ == "__main__":
    for line in report():
        print(line)
