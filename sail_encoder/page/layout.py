"""Layout of the page: its components from top to bottom."""

from collections.abc import Sequence
from typing import Any

import gradio

from sail_encoder.page.markup import static, upload_markup
from sail_encoder.page.visits import TABS

UPLOAD_LIMIT = 20 * 2**20
"""Bytes of a file at most."""

UPLOAD_REFUSAL = f"larger than {UPLOAD_LIMIT // 2**20} MiB, which is more than this page takes; save it smaller"

_ABOUT = (
    "Images stay in the memory of this server, for those who uploaded them, and go nowhere else. Photographs are "
    "turned upright as their EXIF orientation says."
)
_NO_HEAD = (
    "There is no trained head here. Train one, for instance with `sail segment train --config scenes_linear --out "
    "runs/segmentation`, and start the page with `sail demo --page --head runs/segmentation`."
)


class ImageChoice:
    """Ways to choose an image: a button for each example, by name, and one for a file.

    Args:
        label: What the button for a file is for.
        examples: Names of the examples.
        elem_id: Beginning of the ids in the page.
    """

    def __init__(self, label: str, examples: Sequence[str], elem_id: str) -> None:
        with gradio.Row(elem_id=elem_id):
            self.examples = {name: gradio.Button(name, size="sm", min_width=80) for name in examples}
            markup = upload_markup(label, UPLOAD_LIMIT, UPLOAD_REFUSAL)
            script = static("upload.js")
            self.upload = gradio.HTML(markup, elem_id=f"{elem_id}-upload", js_on_load=script, min_width=80)


class Layout:
    """Components that something happens to, built inside of the `Blocks` that is open.

    Args:
        models: Names of the models to choose from.
        examples: Names of the examples.
        has_head: Whether there is a head that segments.

    Attributes:
        visit: What a visitor looks at, on the server.
        message: What went wrong.
        model: The choice of a model.
        about: Words about it.
        first: The choice of the image.
        second: The choice of an image to match with.
        photo: The image, on which a patch is chosen.
        row: Row of the patch.
        column: Its column.
        layer: The layer.
        tabs: The tabs, by name.
        views: The picture of each tab that has one.
        conversation: Questions and answers.
        question: The next question.
    """

    def __init__(self, models: Sequence[str], examples: Sequence[str], has_head: bool) -> None:
        self.visit = gradio.State()
        gradio.HTML("<h1>Features of images</h1>")
        self.message = gradio.HTML(elem_id="message")
        with gradio.Row():
            self.model = gradio.Dropdown(list(models), value=models[0], label="Model", elem_id="model")
            self.about = gradio.Markdown(elem_id="about")
        with gradio.Row():
            with gradio.Column(min_width=320):
                self._add_image(examples)
            with gradio.Column(min_width=320), gradio.Tabs(elem_id="tabs"):
                self._add_tabs(examples, has_head)
        gradio.Markdown(_ABOUT, elem_id="privacy")

    @property
    def outputs(self) -> list[Any]:
        """All that an event may change."""
        looked_at = [self.photo, self.row, self.column, self.layer, *self.views.values()]
        return [self.visit, self.message, self.model, self.about, *looked_at, self.conversation, self.question]

    def _add_image(self, examples: Sequence[str]) -> None:
        self.first = ImageChoice("Upload an image", examples, "first")
        self.photo = gradio.HTML(elem_id="photo", js_on_load=static("photo.js"))
        with gradio.Row():
            self.row = gradio.Number(label="Row", precision=0, elem_id="row", min_width=90)
            self.column = gradio.Number(label="Column", precision=0, elem_id="column", min_width=90)
            self.layer = gradio.Slider(0, 1, step=1, label="Layer", elem_id="layer", scale=3, buttons=[])

    def _add_tabs(self, examples: Sequence[str], has_head: bool) -> None:
        self.tabs, self.views = {}, {}
        for name, label in TABS.items():
            with gradio.Tab(label) as self.tabs[name]:
                if name == "chat":
                    self._add_chat()
                if name == "matches":
                    self.second = ImageChoice("Upload an image to match with", examples, "second")
                if name == "segmentation" and not has_head:
                    gradio.Markdown(_NO_HEAD)
                self.views[name] = gradio.HTML(elem_id=name)

    def _add_chat(self) -> None:
        self.conversation = gradio.Chatbot(
            label="Conversation about the image", elem_id="conversation", height=380, render_markdown=False, buttons=[]
        )
        self.question = gradio.Textbox(label="Question", elem_id="question", submit_btn="Ask")
