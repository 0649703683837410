"""generation_config.json of a checkpoint."""

from pathlib import Path

from transformers import GenerationConfig

from sail_encoder.io.errors import explain_damage
from sail_encoder.io.files import require_regular


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """How a checkpoint's answers are made unless asked otherwise; None where it does not say.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return None
    with explain_damage(f"cannot read {path}"):
        require_regular(path)
        return GenerationConfig.from_pretrained(folder)
