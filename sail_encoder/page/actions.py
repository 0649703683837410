"""Actions of a visitor: each changes what is looked at, and draws what that changes on the page."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio
from PIL import Image

from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.chat.engine import Answer
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import TINY
from sail_encoder.page.conversations import Conversations, Turn
from sail_encoder.page.encodings import Encoder, Encoding
from sail_encoder.page.layout import Layout
from sail_encoder.page.markup import photo_markup, view_markup
from sail_encoder.page.photos import Photo, Photos
from sail_encoder.page.views import (
    Segmentation,
    View,
    check_patch,
    view_components,
    view_masks,
    view_matches,
    view_segmentation,
    view_similarity,
)
from sail_encoder.page.visits import Visit

Updates = dict[Any, Any]
"""New values of components."""

_OF_LAYERS = ("similarity", "components", "matches")
"""Tabs that show features of the chosen layer."""


class Page:
    """All that the pages of all visitors share.

    Args:
        encoder: The models, and encodings by them.
        photos: Examples, and images of visitors.
        segment: Segments an image with a trained head, where there is one.

    Attributes:
        conversations: What is said to models.
    """

    def __init__(self, encoder: Encoder, photos: Photos, segment: Callable[[Image.Image], Segmentation] | None) -> None:
        self.encoder, self.photos, self.segment = encoder, photos, segment
        self.conversations = Conversations()


class Actions:
    """Actions, which take the visit and return updates of the page.

    Args:
        page: What is shared.
        layout: Components of the page.
    """

    def __init__(self, page: Page, layout: Layout) -> None:
        self.page, self.layout = page, layout

    def begin(self) -> Updates:
        """Shows the first example to a new visitor."""
        names = list(self.page.photos.examples)
        visit = Visit(next(iter(self.page.encoder.features)), names[0], names[1 % len(names)])
        return {self.layout.visit: visit, **self._look(visit)}

    def choose_model(self, visit: Visit, model: str) -> Updates:
        """Looks at the images with another model."""
        return self._look(visit, model=model, turns=[])

    def choose_first(self, visit: Visit, token: str) -> Updates:
        """Looks at another image, and lets go of the one before."""
        before = visit.first
        updates = self._look(visit, first=token, turns=[])
        self._let_go(visit, before)
        return updates

    def choose_second(self, visit: Visit, token: str) -> Updates:
        """Matches with another image, and lets go of the one before."""
        before = visit.second
        updates = self._change(visit, ("matches",), second=token)
        self._let_go(visit, before)
        return updates

    def choose_layer(self, visit: Visit, layer: float) -> Updates:
        """Shows another layer.

        Raises:
            UserError: If it is not kept.
        """
        layers = self.page.encoder.layers(visit.model)
        if layer not in layers:
            raise UserError(f"there is no layer {layer:g}; use one of {', '.join(map(str, layers))}")
        return self._change(visit, _OF_LAYERS, layer=int(layer))

    def choose_patch(self, visit: Visit, row: float | None, column: float | None) -> Updates:
        """Chooses a patch by its row and column.

        Raises:
            UserError: If the image has no such patch.
        """
        # A number is about to be written.
        if row is None or column is None:
            return {}
        return self._choose_patch(visit, (int(row), int(column)))

    def click(self, visit: Visit, event: gradio.EventData) -> Updates:
        """Chooses the patch under a click, or beside the chosen one."""
        geometry = self._encoding(visit, visit.first).geometry
        if hasattr(event, "x"):
            height, width = geometry.image_size
            return self._choose_patch(visit, geometry.patch_at(float(event.x) * width, float(event.y) * height))
        steps = zip(visit.patch, (event.rows, event.columns), geometry.grid, strict=True)
        row, column = (min(max(0, index + int(step)), count - 1) for index, step, count in steps)
        return self._choose_patch(visit, (row, column))

    def open_tab(self, visit: Visit, tab: str) -> Updates:
        """Draws what a tab shows."""
        return self._change(visit, (tab,), tab=tab)

    def ask(self, visit: Visit, question: str) -> Iterator[Updates]:
        """Asks the model about the image; the answer grows as it comes."""
        turns, photo, answer = visit.turns, self.page.photos.get(visit.first), Answer("")
        asked = {self.layout.conversation: _messages([*turns, (question, "…")]), self.layout.question: ""}
        yield {**asked, **self._no_masks}
        try:
            for answer in self.page.conversations.ask(visit.topic, photo, turns, question):
                # While the answer comes, the visitor may begin another conversation, with turns of its own.
                if visit.turns is not turns:
                    return
                yield {self.layout.conversation: _messages([*turns, (question, answer)])}
        except Exception:
            if visit.turns is turns:
                yield {self.layout.conversation: _messages(turns), self.layout.question: question}
            raise
        if visit.turns is not turns:
            return
        visit.turns = [*turns, (question, answer.text)]
        if len(answer.masks):
            yield {self.layout.views["chat"]: view_markup(view_masks(photo, answer.masks))}

    def forget(self, visit: Visit) -> Updates:
        """Begins the conversation about the image again."""
        visit.turns = []
        return {self.layout.conversation: [], **self._no_masks}

    def fields(self, visit: Visit) -> Updates:
        """Values of the fields of the page, to be put back where something else was refused."""
        row, column = visit.patch
        numbers = {self.layout.row: row, self.layout.column: column, self.layout.layer: visit.layer}
        return {self.layout.model: visit.model, **numbers}

    def _let_go(self, visit: Visit, token: str) -> None:
        if token not in (visit.first, visit.second):
            self.page.photos.drop(token)

    def _choose_patch(self, visit: Visit, patch: tuple[int, int]) -> Updates:
        patch = check_patch(self._encoding(visit, visit.first), patch)
        drawn = self._change(visit, ("similarity",), patch=patch)
        return {**self._draw_photo(visit), **drawn}

    def _look(self, visit: Visit, **changes: Any) -> Updates:
        """Shows an image from its middle, at the last layer of the model, or the chosen one where the model stays."""
        changed = visit.changed(**changes)
        layers = self.page.encoder.layers(changed.model)
        rows, columns = self._encoding(changed, changed.first).geometry.grid
        layer = visit.layer if changed.model == visit.model and visit.layer in layers else layers[-1]
        changes |= {"layer": layer, "patch": (rows // 2, columns // 2)}
        changed = visit.changed(**changes)
        updates = {
            self.layout.about: about_model(self.page.encoder.specs[changed.model]),
            self.layout.layer: _slider(layers, layer),
            self.layout.conversation: _messages(changed.turns),
            **self._no_masks,
            **self._draw_photo(changed),
            **self._draw_tab(changed),
        }
        return {**updates, **self._settle(visit, changed, changes)}

    def _change(self, visit: Visit, tabs: Sequence[str], **changes: Any) -> Updates:
        """Changes what one of these tabs shows, if it is open."""
        changed = visit.changed(**changes)
        updates = self._draw_tab(changed) if changed.tab in tabs else {}
        return {**updates, **self._settle(visit, changed, changes)}

    def _settle(self, visit: Visit, drawn: Visit, changes: dict[str, Any]) -> Updates:
        """Keeps what has been drawn; draws again the image or tab that was chosen meanwhile."""
        visit.change(**changes)
        # An image or a model that was chosen meanwhile need not have this layer and this patch.
        if (visit.model, visit.first) != (drawn.model, drawn.first):
            return self._look(visit)
        return {} if visit.tab == drawn.tab else self._draw_tab(visit)

    def _draw_photo(self, visit: Visit) -> Updates:
        photo, encoding = self.page.photos.get(visit.first), self._encoding(visit, visit.first)
        row, column = visit.patch
        markup = photo_markup(photo, encoding, visit.patch)
        return {self.layout.photo: markup, self.layout.row: row, self.layout.column: column}

    @property
    def _no_masks(self) -> Updates:
        return {self.layout.views["chat"]: ""}

    def _draw_tab(self, visit: Visit) -> Updates:
        view = self._view(visit) if visit.tab in self.layout.views else None
        return {} if view is None else {self.layout.views[visit.tab]: view_markup(view)}

    def _view(self, visit: Visit) -> View | None:
        photo = self.page.photos.get(visit.first)
        # What is drawn there belongs to an answer.
        if visit.tab == "chat":
            return None
        if visit.tab == "segmentation":
            return None if self.page.segment is None else view_segmentation(photo, self.page.segment(photo.read()))
        encoding = self._encoding(visit, visit.first)
        if visit.tab == "components":
            return view_components(photo, encoding, visit.layer)
        if visit.tab == "similarity":
            return view_similarity(photo, encoding, visit.layer, visit.patch)
        photos: list[Photo] = [photo, self.page.photos.get(visit.second)]
        return view_matches(photos, [encoding, self._encoding(visit, visit.second)], visit.layer)

    def _encoding(self, visit: Visit, token: str) -> Encoding:
        return self.page.encoder.encode(self.page.photos.get(token), visit.model)


def about_model(spec: BackboneSpec) -> str:
    """Description of a model, in Markdown."""
    sizes = f"{spec.num_layers} layers of {spec.embed_dim:,} channels, patches of {spec.patch_size} pixels"
    if spec.name == TINY:
        return (
            f"**{TINY}** is a small model of 5 million parameters ({sizes}) that ships with the package so that "
            "everything works at once. It was trained on drawn scenes alone and has never seen a photograph; it is not "
            "SAIL-7B, which `--model ByteDance-Seed/SAIL-7B` loads."
        )
    return f"**{spec.name}**: {spec.parameters() / 1e6:,.0f} million parameters, {sizes}."


def _slider(layers: Sequence[int], layer: int) -> gradio.Slider:
    """Slider over layers at even distances."""
    step = layers[1] - layers[0] if len(layers) > 1 else 1
    # A slider with one place cannot be drawn.
    return gradio.Slider(layers[0], layers[-1] + (len(layers) == 1), layer, step=step, visible=len(layers) > 1)


def _messages(turns: list[Turn]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
