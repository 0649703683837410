"""Caches of keys and values: the name that transformers gives to them, and sharing them.

Models, their outputs and `generate` call it `past_key_values` up to transformers 5.23, and `cache` from 5.24 on. Only
this file decides which: models take either name as an argument and fill the field that the installed version reads.
"""

import copy
from dataclasses import fields
from typing import Any

from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""Name of the argument of models and of `generate`, and of the field of their outputs."""


def given_cache(past_key_values: Cache | None, kwargs: dict[str, Any]) -> Cache | None:
    """Takes the cache that a model was given under one name or the other; `kwargs` no longer holds it afterwards."""
    cache: Cache | None = kwargs.pop("cache", None)
    return past_key_values if cache is None else cache


def fork_cache(cache: DynamicCache) -> DynamicCache:
    """A cache with the same tensors; they are replaced when it grows, never written to."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork
