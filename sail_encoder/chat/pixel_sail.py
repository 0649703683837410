"""Pixel-SAIL as a chat model: a SAIL whose answers have masks, and whose questions may name a region."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from sail_encoder.chat.caches import join_caches, pad_after_prefixes
from sail_encoder.chat.engine import Context, Prefix, Prompt
from sail_encoder.chat.families import PIXEL_SAIL
from sail_encoder.chat.sail import SailEngine, join_grids
from sail_encoder.images.decoding import Array, ImageLike, read_image
from sail_encoder.images.resizing import Size
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.pixel_sail.checkpoint import load_pixel_sail
from sail_encoder.models.pixel_sail.modeling_pixel_sail import mark_patches
from sail_encoder.models.pixel_sail.questions import check_region
from sail_encoder.models.pixel_sail.regions import Region, number_patches, read_region
from sail_encoder.models.pixel_sail.tokens import PHRASE_TOKENS, SEG, VISUAL_PROMPTS
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.positions import prompt_positions
from sail_encoder.models.sail.processing_sail import SailProcessor


class PixelSailEngine(SailEngine):
    """Runs Pixel-SAIL: as SAIL, and a `[SEG]` token in an answer stands for a mask in the last image before it.

    The content of a `Prefix` is [rows, columns, 3 * patch_size**2 + 1], normalised pixels and the number of the visual
    prompt of each patch, -1 where there is none. A cache that ends with an image, or goes on from there, has the
    features of its patches in an attribute `patch_features` [nh, nw, C].
    """

    family = PIXEL_SAIL
    sayable = (SEG, *PHRASE_TOKENS, *VISUAL_PROMPTS)

    @classmethod
    def _load(cls, name: str, device: torch.device, dtype: torch.dtype) -> tuple[SailForCausalLM, SailProcessor]:
        return load_pixel_sail(name, device, dtype)

    @property
    def end_id(self) -> int:
        return self.end_ids[-1]

    @property
    def end_ids(self) -> Sequence[int]:
        # Of several, those made of Qwen close an answer with the last.
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    def decode(self, ids: int | Sequence[int]) -> str:
        kept = [token for token in ([ids] if isinstance(ids, int) else ids) if token not in self.end_ids]
        text: str = self.processor.decode(kept, skip_special_tokens=False)
        return text

    def encode(self, image: ImageLike) -> Prefix:
        prefix = super().encode(image)
        return self._mark(prefix, torch.full(prefix.content.shape[:2], -1))

    def encode_region(self, image: ImageLike, region: Region) -> Prefix:
        picture, _ = read_image(image, self.exif_rotate)
        inside = read_region(region, (picture.height, picture.width))
        prefix = super().encode(picture)
        grid = prefix.content.shape[0], prefix.content.shape[1]
        numbers = number_patches({0: inside}, grid, self.processor.image_processor.patch_size)
        return self._mark(prefix, torch.from_numpy(numbers).view(grid))

    def _mark(self, prefix: Prefix, numbers: Tensor) -> Prefix:
        marked = mark_patches(prefix.content.flatten(0, 1), numbers.flatten())
        return replace(prefix, content=marked.unflatten(0, numbers.shape))

    def check_question(self, question: str, shown: Sequence[Prefix], earlier: Sequence[Prefix]) -> None:
        super().check_question(question, shown, earlier)
        is_shown, is_known = (any(map(_has_region, prefixes)) for prefixes in (shown, earlier))
        check_region(question, is_shown, is_known)

    def extend(self, cache: DynamicCache, ids: list[int], prefixes: Sequence[Prefix]) -> DynamicCache:
        model, grids = self.model.model, join_grids(prefixes)
        pixels = torch.cat([prefix.content.flatten(0, 1) for prefix in prefixes]).to(self.model.device)
        if cache.get_seq_length() == 0 and len(ids) == prefixes[0].tokens:
            cache, features = model.encode_image(pixels, grids)
        else:
            input_ids = torch.tensor([ids], device=self.model.device)
            inputs = {"input_ids": input_ids, "pixel_values": pixels, "image_grid_hw": grids}
            states = model(**inputs, **{CACHE: cache}).last_hidden_state[0]
            rows, columns = prefixes[-1].content.shape[:2]
            patches = states[torch.eq(input_ids[0], self.processor.image_token_id)]
            features = patches[-rows * columns :].unflatten(0, (rows, columns))
        # An attribute, because it belongs to the keys and values: copies of a cache keep it.
        cache.patch_features = features
        return cache

    def predict_masks(
        self, answers: Sequence[list[int]], prompts: Sequence[Prompt], contexts: Sequence[Context]
    ) -> list[Array]:
        masks = super().predict_masks(answers, prompts, contexts)
        seg_id, _ = self.model.config.pixel_token_ids
        pointing = [index for index, said in enumerate(answers) if seg_id in said and prompts[index].prefixes]
        if not pointing:
            return masks
        chosen = [(answers[index], prompts[index], contexts[index]) for index in pointing]
        for index, states in zip(pointing, self._seg_states(*zip(*chosen, strict=True)), strict=True):
            logits = self.model.mask_logits(contexts[index].cache.patch_features, states)
            masks[index] = resize_masks(logits, prompts[index].image_size)
        return masks

    def _seg_states(
        self, answers: Sequence[list[int]], prompts: Sequence[Prompt], contexts: Sequence[Context]
    ) -> list[Tensor]:
        """Per answer the states of its `[SEG]` tokens after the final norm [q, hidden_size]."""
        config, device = self.model.config, self.model.device
        rows = [prompt.ids + said for prompt, said in zip(prompts, answers, strict=True)]
        known = [len(context.ids) for context in contexts]
        ids, mask = pad_after_prefixes(rows, known, self.processor.tokenizer.pad_token_id)
        grids = join_grids([prefix for prompt in prompts for prefix in prompt.prefixes])
        positions = prompt_positions(ids, grids, mask, config)[..., max(known) :].to(device)
        cache = join_caches([context.cache for context in contexts], config)
        inputs = {"input_ids": ids[:, max(known) :].to(device), "attention_mask": mask.to(device), CACHE: cache}
        states = self.model.model(**inputs, position_ids=positions).last_hidden_state
        is_seg = [torch.tensor(said) == config.pixel_token_ids[0] for said in answers]
        # All rows end at one column.
        return [row[-len(seg) :][seg.to(device)] for row, seg in zip(states, is_seg, strict=True)]


def resize_masks(logits: Tensor, image_size: Size) -> Array:
    """Masks at the size of an image, bool [q, height, width], from logits [q, H, W]."""
    resized = F.interpolate(logits[None].float(), size=image_size, mode="bilinear", align_corners=False)[0]
    masks: Array = (resized > 0).cpu().numpy()
    return masks


def _has_region(prefix: Prefix) -> bool:
    return bool((prefix.content[..., -1] >= 0).any())
