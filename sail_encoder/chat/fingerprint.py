"""Notices that a checkpoint has changed in place, without loading it."""

import hashlib
import os
from pathlib import Path

from sail_encoder.chat.families import ChatSource
from sail_encoder.io.hub import find_checkpoint

_WEIGHTS = {".safetensors", ".bin"}
_OTHERS = {".json", ".jinja", ".model"}
_SAMPLES, _SAMPLE_BYTES = 1024, 512


def fingerprint_chat(source: ChatSource) -> str:
    """Names what answers depend on, the adapter included; weights are downloaded if need be."""
    folders = [find_checkpoint(source.name), *([source.adapter] if source.adapter else [])]
    return "+".join(map(fingerprint_checkpoint, folders))


def fingerprint_checkpoint(folder: Path) -> str:
    """Names what answers depend on: weights, configuration, tokenizer and template.

    Of weights a sample is hashed, spread evenly over each file, so that this takes no time with the largest of them.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS | _OTHERS:
            size = path.stat().st_size
            step = max(_SAMPLE_BYTES, size // _SAMPLES if path.suffix in _WEIGHTS else 0)
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb", buffering=0) as file:
                for start in range(0, size, step):
                    digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, start))
    return digest.hexdigest()[:16]
