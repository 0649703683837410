"""Families of models that can chat, found by a checkpoint's config.json before anything heavy is imported.

Others may add theirs: an entry point of the group `sail_encoder.chat` whose name is that of their family of backbones
and whose object is a `ChatFamily`.
"""

from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sail_encoder.backbones.registry import describe, families
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import TINY, find_checkpoint
from sail_encoder.models.pixel_sail.published import is_pixel_sail
from sail_encoder.models.pixel_sail.tokens import NO_PROMPT, SEG
from sail_encoder.models.sail.config_file import VISION_TOKENS
from sail_encoder.models.sail_vl.published import TOWERS, hub_name, read_json

if TYPE_CHECKING:
    from sail_encoder.chat.engine import Engine

ENTRY_POINTS = "sail_encoder.chat"
ADAPTER_FILE = "adapter_config.json"
CAN_CHAT = (
    f"models that chat are {TINY}, ByteDance-Seed/SAIL-7B, the whole models of SAIL-VL and SAIL-VL2 such as "
    "BytedanceDouyinContent/SAIL-VL2-2B, and folders of these, of their adapters or of a Pixel-SAIL"
)

THINKING_TOKENS = 4096
"""Longest answer of a model that thinks first, in the authors' evaluation."""


@dataclass(frozen=True)
class ChatFamily:
    """A family of models that can chat.

    Attributes:
        name: Its name.
        engine: Class that runs its models, as `module:name`; see `Engine`.
        size_option: Option that makes images take fewer tokens.
        options: Which options of `load_chat` it takes.
        placeholders: Texts that stand for images, and that a question may not hold.
        videos: Whether they take the frames of videos.
        regions: Whether a question may name a region of its image.
        masks: Whether answers may have masks.
        max_new_tokens: Longest answer where a call does not say.
    """

    name: str
    engine: str
    size_option: str
    options: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = ()
    videos: bool = False
    regions: bool = False
    masks: bool = False
    max_new_tokens: int = 512

    def engine_class(self) -> "type[Engine]":
        """Imports the class that runs its models."""
        module, name = self.engine.split(":")
        found: type[Engine] = getattr(import_module(module), name)
        return found

    def longest_answer(self, thinking: bool = False) -> int:
        """Tokens of the longest answer where a call does not say."""
        return THINKING_TOKENS if thinking else self.max_new_tokens

    def require_options(self, given: dict[str, Any]) -> None:
        """Raises a `UserError` if one of these options is not for this family."""
        for option in given.keys() - set(self.options):
            takers = sorted({family.name for family in FAMILIES.values() if option in family.options})
            raise UserError(f"{option} has no effect on a {self.name} model; it is for {' and '.join(takers)}")

    def require_videos(self) -> None:
        """Raises a `UserError` if its models take no videos."""
        if not self.videos:
            raise UserError(f"a {self.name} model takes no videos; show it single frames as images")

    def require_regions(self) -> None:
        """Raises a `UserError` if its models know no regions."""
        if not self.regions:
            self.refuse_regions()

    def refuse_regions(self) -> NoReturn:
        """Raises a `UserError` that says so."""
        raise UserError(f"a {self.name} model knows no regions; a Pixel-SAIL does, see docs/pixel-sail.md")

    def require_masks(self) -> None:
        """Raises a `UserError` if its models give no masks."""
        if not self.masks:
            raise UserError(f"a {self.name} model gives no masks; a Pixel-SAIL does, see docs/pixel-sail.md")


SAIL = ChatFamily(
    "SAIL",
    "sail_encoder.chat.sail:SailEngine",
    "max_tokens",
    ("max_tokens", "sliding_window"),
    tuple(VISION_TOKENS.values()),
)
SAIL_VL = ChatFamily(
    "SAIL-VL",
    "sail_encoder.chat.sail_vl:SailVLEngine",
    "max_tiles",
    ("max_tiles", "thinking"),
    videos=True,
    # The call on the model cards.
    max_new_tokens=1024,
)
PIXEL_SAIL = ChatFamily(
    "Pixel-SAIL",
    "sail_encoder.chat.pixel_sail:PixelSailEngine",
    "max_tokens",
    ("max_tokens", "sliding_window"),
    (*VISION_TOKENS.values(), SEG, NO_PROMPT),
    regions=True,
    masks=True,
)

FAMILIES = {"sail": SAIL, "sail_vl": SAIL_VL, "pixel_sail": PIXEL_SAIL}
"""By the `model_type` of models in transformers' terms; but for Pixel-SAIL, the name of the family of backbones too."""


@dataclass(frozen=True)
class ChatSource:
    """A model that can chat, as far as its small files tell.

    Attributes:
        name: Its name, or its folder; of an adapter that of the model which it adapts.
        family: What it belongs to.
        adapter: Folder of an adapter (PEFT) to put on it.
    """

    name: str
    family: ChatFamily
    adapter: Path | None = None


def find_chat(name: str) -> ChatSource:
    """Finds out what a name or folder is that somebody wants to talk to; only small files are downloaded.

    Raises:
        CheckpointError: If there is no such model, or it cannot chat.
    """
    if name.startswith(tuple(family.prefix for family in families() if family.prefix)):
        raise CheckpointError(f"{name} has no language model; {CAN_CHAT}")
    folder = find_checkpoint(hub_name(name), weights=False)
    if (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file():
        return replace(_find_model(_base_of_adapter(folder)), adapter=folder)
    return _find_model(name)


def _find_model(name: str) -> ChatSource:
    name = hub_name(name)
    spec = describe(name)
    folder = find_checkpoint(name, weights=False)
    if read_json(folder / "config.json").get("model_type") in TOWERS:
        raise CheckpointError(f"{name} is a vision tower alone, which cannot chat; {CAN_CHAT}")
    return ChatSource(name, PIXEL_SAIL if is_pixel_sail(folder) else find_family(spec.family, name))


def find_family(family: str, where: str) -> ChatFamily:
    """Family of models that chat, by the name of their family of backbones.

    Raises:
        CheckpointError: If its models cannot chat; it calls them `where`.
    """
    if family in FAMILIES:
        return FAMILIES[family]
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == family:
            found: ChatFamily = entry.load()
            return found
    raise CheckpointError(f"{where} is of the family '{family}', which cannot chat; {CAN_CHAT}")


def chosen_options(**options: Any) -> dict[str, Any]:
    """Options of `load_chat` that differ from their defaults: None, False, and `config` for the sliding window."""
    return {name: value for name, value in options.items() if value not in (None, False, "config")}


def _base_of_adapter(folder: Path) -> str:
    base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / ADAPTER_FILE} names no base_model_name_or_path; write the model's folder there"
        )
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise CheckpointError(
            f"{folder} adapts the model in {base}, which is not here; set base_model_name_or_path in its {ADAPTER_FILE}"
        )
    return base
