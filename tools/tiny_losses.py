"""Losses of the training of `sail-tiny`: of answers and of masks, and of what leads the attention to things."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from evals.scenes import BACKGROUNDS
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.pixel_sail.losses import mean_mask_losses
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.sail.positions import next_positions
from tools.tiny_aims import ATTRIBUTES, Aims
from tools.tiny_batches import Batch

EARLY = 3
"""Block after which patches are to know the attributes of their thing: half of the blocks are left to ask for them."""
LOOKING_HEADS = 2
"""Heads of the block after it, the last ones, in which texts are to look at the things that they name."""


class Student(nn.Module):
    """The model with what its training alone needs: linear maps from early states to attributes of things.

    Text can ask patches for the attributes of their thing only where earlier blocks have brought them together.

    Args:
        model: What is trained.
    """

    def __init__(self, model: PixelSailForCausalLM) -> None:
        super().__init__()
        self.model = model
        counts = [*ATTRIBUTES.values(), len(BACKGROUNDS)]
        self.attributes = nn.ModuleList(nn.Linear(model.config.hidden_size, count) for count in counts)

    def attribute_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the attributes, from states [tokens, C] and labels [tokens, attributes]."""
        states = F.rms_norm(states, states.shape[-1:])
        losses = [
            F.cross_entropy(head(states).float(), of_token, reduction="sum") / (of_token >= 0).sum().clamp(min=1)
            for head, of_token in zip(self.attributes, labels.unbind(1), strict=False)  # texts lack the last ones
        ]
        return torch.stack(losses).mean()


def loss_of(student: Student, batch: Batch, half: bool = True) -> Tensor:
    """Mean cross-entropy over the tokens of the answers, weighted, and the losses of masks, attributes and attention.

    An image is encoded once for all texts about it, each of which sees it and nothing of the others.
    """
    model = student.model
    device = model.device
    images = {name: values.to(device) for name, values in batch["images"].items()}
    texts, labels, image_of_text = (batch[name].to(device) for name in ("input_ids", "labels", "image_of_text"))
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        seen = model.model(**images, use_cache=True, output_hidden_states=True)
        cache = seen[CACHE]
        begin = torch.as_tensor(next_positions(cache, len(batch["masks_of_image"])))[image_of_text]
        cache.batch_select_indices(image_of_text)
        positions = (begin + torch.arange(texts.shape[1], device=device)).expand(3, -1, -1)
        wanted = {"output_attentions": True, "output_hidden_states": True}
        read = model.model(texts, position_ids=positions, cache=cache, **wanted)
        states = read.last_hidden_state
        learned = labels[:, 1:] != -100
        loss = F.cross_entropy(model.lm_head(states[:, :-1][learned]).float(), labels[:, 1:][learned])
        early = seen.hidden_states[EARLY][:, 1:-1].flatten(0, 1)
        attributes = student.attribute_loss(early, batch["patch_labels"].to(device).flatten(0, 1))
        loss = model.config.text_weight * loss + attributes
        if len(batch["aims"].places):
            loss = loss + aim_loss(student, read, Aims(*(values.to(device) for values in batch["aims"])))
        if len(batch["mask_labels"]):
            loss = loss + mask_loss_of(model, seen.last_hidden_state, states[texts == model.config.seg_token_id], batch)
    return loss


def aim_loss(student: Student, read: ModelOutput, aims: Aims) -> Tensor:
    """Losses of tokens that are about things: they are to know by what these are named, look at them, and know them.

    Answers alone do not bring this about, as they are right now and then without it: things were found by their shape,
    and by their color hardly ever. What is named and what is found is read by the maps that read it from patches, so
    that all have it in the same form.

    Args:
        student: The model and these maps.
        read: Hidden states [texts, length, C] of the texts, and attention [texts, heads, length, keys], the keys being
            the image's tokens and then the text's.
        aims: These tokens.
    """
    text, position = aims.places.unbind(1)
    looks = read.attentions[EARLY][text, -LOOKING_HEADS:, position, 1 : 1 + aims.shares.shape[1]].mean(dim=1)
    looking = -(looks * aims.shares).sum(dim=1).clamp(min=1e-6).log().mean()
    before, after = (read.hidden_states[block][text, position] for block in (EARLY, EARLY + 1))
    return looking + student.attribute_loss(before, aims.named) + student.attribute_loss(after, aims.known)


def mask_loss_of(model: PixelSailForCausalLM, images: Tensor, segs: Tensor, batch: Batch) -> Tensor:
    """Losses of masks, from the states of images [images, tokens, C] and of `[SEG]` tokens [masks, C].

    All images have one grid, so that they are upsampled together.
    """
    head = model.mask_head
    pixels = head.embed_pixels(images[:, 1:-1].unflatten(1, batch["images"]["image_grid_hw"][0].tolist()))
    queries = head.seg_token_projector(segs).split(batch["masks_of_image"])
    logits = torch.cat([torch.einsum("qc,hwc->qhw", *pair) for pair in zip(queries, pixels, strict=True)])
    cross_entropy, dice = mean_mask_losses([logits], [batch["mask_labels"].to(logits.device)], model.config)
    return cross_entropy + dice
