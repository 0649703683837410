"""The page: its layout, and what happens on it."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Any

import gradio

from sail_encoder.io.devices import is_out_of_memory
from sail_encoder.io.errors import UserError, in_one_line
from sail_encoder.page.actions import Actions, Page, Updates
from sail_encoder.page.layout import ImageChoice, Layout
from sail_encoder.page.markup import message_markup
from sail_encoder.page.visits import Visit

_SESSIONS = 100
"""Visitors who are remembered, of each of whom gradio keeps the last pictures."""

_OVER = "this visit is over, as the server does not know it any more; reload the page"


def build_page(page: Page) -> gradio.Blocks:
    """The page as gradio's `Blocks`."""
    with gradio.Blocks(title="sail-encoder", analytics_enabled=False) as blocks:
        layout = Layout(list(page.encoder.features), list(page.photos.examples), page.segment is not None)
        _connect(blocks, Actions(page, layout), layout)
    blocks.state_session_capacity = _SESSIONS
    return blocks


def _connect(blocks: gradio.Blocks, actions: Actions, layout: Layout) -> None:
    """Connects what visitors do with what happens then."""
    explain = partial(_explained, actions)
    heavy = {"outputs": layout.outputs, "api_visibility": "private", "show_progress": "hidden"}
    # What is encoded already is drawn without waiting in line.
    light = {**heavy, "queue": False, "trigger_mode": "always_last"}
    blocks.load(explain(actions.begin), None, **heavy)
    layout.model.input(explain(actions.choose_model), [layout.visit, layout.model], **heavy)
    _connect_choice(layout.first, explain, actions.choose_first, layout, heavy)
    _connect_choice(layout.second, explain, actions.choose_second, layout, heavy)
    layout.photo.click(explain(actions.click), [layout.visit], **light)
    for number in (layout.row, layout.column):
        number.input(explain(actions.choose_patch), [layout.visit, layout.row, layout.column], **light)
    layout.layer.input(explain(actions.choose_layer), [layout.visit, layout.layer], **light)
    for name, tab in layout.tabs.items():
        # gradio opens the first tab before a visit begins.
        tab.select(explain(partial(_open, actions, name), over=""), [layout.visit], **heavy)
    asked = _explained_as_it_comes(actions, actions.ask)
    layout.conversation.clear(explain(actions.forget), [layout.visit], **heavy)
    # A question that is asked during an answer waits for its end.
    layout.question.submit(asked, [layout.visit, layout.question], trigger_mode="multiple", **heavy)


def _connect_choice(
    choice: ImageChoice,
    explain: Callable[..., Any],
    choose: Callable[[Visit, str], Updates],
    layout: Layout,
    options: dict[str, Any],
) -> None:
    def upload(visit: Visit, event: gradio.EventData) -> Updates:
        if hasattr(event, "error"):
            raise UserError(str(event.error))
        return choose(visit, str(event.token))

    choice.upload.upload(explain(upload), [layout.visit], **options)
    for name, button in choice.examples.items():
        button.click(explain(partial(_choose, choose, name)), [layout.visit], **options)


def _choose(choose: Callable[[Visit, str], Updates], name: str, visit: Visit) -> Updates:
    return choose(visit, name)


def _open(actions: Actions, name: str, visit: Visit) -> Updates:
    return actions.open_tab(visit, name)


def _explained(actions: Actions, action: Callable[..., Updates], over: str = _OVER) -> Callable[..., Updates]:
    """An action that says on the page what went wrong, and `over` where there is no visit."""

    @wraps(action)
    def explained(*arguments: Any) -> Updates:
        if arguments and arguments[0] is None:
            return {actions.layout.message: message_markup(over)}
        try:
            return {**action(*arguments), actions.layout.message: ""}
        except Exception as error:
            return _refusal(actions, error, arguments)

    return explained


def _explained_as_it_comes(actions: Actions, action: Callable[..., Iterator[Updates]]) -> Callable[..., Any]:
    """The same for an action that draws several times."""

    @wraps(action)
    def explained(*arguments: Any) -> Iterator[Updates]:
        if arguments[0] is None:
            yield {actions.layout.message: message_markup(_OVER)}
            return
        try:
            for updates in action(*arguments):
                yield {**updates, actions.layout.message: ""}
        except Exception as error:
            yield _refusal(actions, error, arguments)

    return explained


def _refusal(actions: Actions, error: Exception, arguments: Sequence[Any]) -> Updates:
    """Message that says what went wrong, and the fields as they were."""
    fields = actions.fields(arguments[0]) if arguments else {}
    return {**fields, actions.layout.message: message_markup(explain(error))}


def explain(error: Exception) -> str:
    """Words for an error; one that is no mistake of the visitor goes to the terminal in full."""
    if isinstance(error, UserError):
        return in_one_line(error)
    if is_out_of_memory(error):
        return "the memory of this machine is not enough for this; take a smaller image or model"
    traceback.print_exception(error)
    return f"something went wrong here ({in_one_line(error)}); the terminal of the server says more"
