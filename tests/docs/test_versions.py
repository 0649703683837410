"""docs/versions.md lists the private and unexported names of other libraries that our code uses, no more and no less.

Private is what begins with an underscore. Unexported are names of transformers that `transformers` itself lacks, and
names of timm that none of its packages has; of other libraries everything that is not private counts as public.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "versions.md"
PACKAGES = ("sail_encoder", "heads", "evals")
LIBRARIES = ("huggingface_hub", "jsonargparse", "timm", "torch", "transformers")
EXPORTS = {
    "transformers": ("transformers",),
    "timm": ("timm", "timm.data", "timm.layers", "timm.models", "timm.optim", "timm.utils"),
}
SOME_LIBRARY = "?"


def is_private(name):
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def library_of(module):
    return module.partition(".")[0]


def imports(tree):
    """What is imported from the libraries, as (module, name) pairs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            pairs = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            pairs = [tuple(alias.name.rpartition(".")[::2]) for alias in node.names]
        else:
            continue
        yield from (pair for pair in pairs if library_of(pair[0]) in LIBRARIES)


def is_exported(module, name):
    if any(map(is_private, (*module.split("."), name))):
        return False
    exports = EXPORTS.get(library_of(module), (module,))
    taken = getattr(importlib.import_module(module), name, None)
    return module in exports or any(getattr(importlib.import_module(top), name, None) is taken for top in exports)


def private_attributes(tree):
    """Private attributes that are read, set or asked for with `getattr` and its kin, as (object, attribute) pairs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            owner, name = node.args[0], getattr(node.args[1], "value", None)
        else:
            continue
        if is_private(name):
            yield owner, name


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined_names(tree):
    """Names of functions, classes, variables, fields and attributes of `self` that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            yield node.attr


def inherited_names(file, tree):
    """Private names of the libraries' classes that classes in a file override, or read or set on `self`."""
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        names = set(filter(is_private, defined_names(node)))
        names |= {name for owner, name in private_attributes(node) if is_self(owner)}
        for base in library_bases(file, node.name) if names else ():
            inherited = names & vars(base).keys()
            names -= inherited
            yield from ((library_of(base.__module__), f"{base.__name__}.{name}") for name in inherited)


def library_bases(file, name):
    """Classes of the libraries that a class descends from, the nearest first; none where an extra is not installed."""
    try:
        module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    except ImportError:
        return []
    return [base for base in getattr(module, name).__mro__ if library_of(base.__module__) in LIBRARIES]


@pytest.fixture(scope="module")
def used():
    """Every private or unexported name in use, as (library, name).

    The type of an object is not known from the code, so the library of its attributes is `SOME_LIBRARY`.
    """
    paths = [ROOT / "sail_cli.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)}
    own = {name for tree in trees.values() for name in defined_names(tree)}
    found = set()
    for file, tree in trees.items():
        names = set(inherited_names(file, tree))
        known = own | {name.rpartition(".")[2] for _, name in names}
        names |= {
            (library_of(m), f"{m}.{name}".partition(".")[2]) for m, name in imports(tree) if not is_exported(m, name)
        }
        for owner, name in private_attributes(tree):
            # The standard library documents this one under its underscore.
            if name not in known and (ast.unparse(owner), name) != ("os", "_exit"):
                names.add((SOME_LIBRARY, f"{ast.unparse(owner).removeprefix('self.')}.{name}"))
        found |= names
    return found


def rows():
    """Rows of the table: ((library, name), reason)."""
    section = PAGE.read_text(encoding="utf-8").partition("## Private and unexported names\n")[2].partition("\n## ")[0]
    for line in re.findall(r"^\| (?!library).*\|$", section, re.MULTILINE):
        library, name, reason = (cell.strip() for cell in line.strip("|").split("|"))
        yield (library, name.strip("`")), reason


def test_the_table_lists_what_is_used_and_nothing_else(used):
    table = {name for name, _ in rows()}
    library_of_name = {name: library for library, name in table}
    found = {
        (library_of_name.get(name, library) if library == SOME_LIBRARY else library, name) for library, name in used
    }
    missing, stale = (
        [f"| {library} | `{name}` | |" for library, name in sorted(names)] for names in (found - table, table - found)
    )
    advice = "\n".join(["", "add these rows with a reason each:", *missing, "remove these rows:", *stale])
    assert missing == stale == [], advice


def test_every_row_gives_a_reason_and_stands_once():
    names = [name for name, _ in rows()]
    assert names == sorted(set(names))
    assert [name for name, reason in rows() if not reason] == []
    assert {library for library, _ in names} <= set(LIBRARIES)


CODE = """
from timm.data import create_transform
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer, _cfg
from torch.nn import functional
from torch._dynamo import reset
from transformers import UperNetConfig
from transformers.cache_utils import Cache
from transformers.models.upernet.modeling_upernet import UperNetHead, UperNetPreTrainedModel
import torch._inductor.config
import numpy._core
"""


def test_unexported_imports_are_found():
    found = [f"{module}.{name}" for module, name in imports(ast.parse(CODE)) if not is_exported(module, name)]
    assert found == [
        "timm.models.vision_transformer._cfg",
        "torch._dynamo.reset",
        "transformers.models.upernet.modeling_upernet.UperNetHead",
        "torch._inductor.config",
    ]


def test_private_attributes_are_found():
    code = "parser._actions[0]; self.config._name = 1; getattr(cache, '_seen', 0); hasattr(self, 'public'); x.__dict__"
    found = [(ast.unparse(owner), name) for owner, name in private_attributes(ast.parse(code))]
    assert sorted(found) == [("cache", "_seen"), ("parser", "_actions"), ("self.config", "_name")]
