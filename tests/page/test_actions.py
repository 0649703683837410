"""What happens on the page, without a browser."""

import io
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import noise
from page_helpers import CLASSES, noisy_png, require
from PIL import ExifTags, Image

from evals.page import load_segmentation
from sail_encoder.chat.conversation import load_chat
from sail_encoder.io.errors import CheckpointError, UserError

gradio = require("gradio")

from sail_encoder.page.actions import Actions, about_model  # noqa: E402
from sail_encoder.page.app import build_page  # noqa: E402
from sail_encoder.page.layout import Layout  # noqa: E402
from sail_encoder.page.photos import Photo  # noqa: E402
from sail_encoder.page.views import view_masks  # noqa: E402
from sail_encoder.pictures.masks import mask_color  # noqa: E402


@pytest.fixture(scope="module")
def actions(page):
    with gradio.Blocks():
        layout = Layout(list(page.encoder.features), list(page.photos.examples), has_head=True)
    return Actions(page, layout)


@pytest.fixture
def visit(actions):
    return actions.begin()[actions.layout.visit]


def shown(updates):
    """Ids of the components that change."""
    return {component.elem_id for component in updates} - {None}


def upload(actions, seed):
    return actions.page.photos.add(Photo(f"{seed}.png", noisy_png(seed)))


def test_a_visit_begins_in_the_middle_of_the_first_example(actions):
    updates = actions.begin()
    visit = updates[actions.layout.visit]
    assert (visit.model, visit.first, visit.second, visit.layer) == ("sail-tiny", "China", "Flower", 5)
    assert visit.patch == (6, 9)
    assert 'alt="China, 13 rows and 19 columns of patches; row 6, column 9 is chosen"' in updates[actions.layout.photo]
    assert "row 6, column 9, at layer 5" in updates[actions.layout.views["similarity"]]
    assert actions.layout.views["components"] not in updates


def test_visitors_have_their_own_choices(actions):
    mine, yours = (actions.begin()[actions.layout.visit] for _ in range(2))
    actions.choose_first(mine, upload(actions, 1))
    assert yours.first == "China"
    assert mine.visitor != yours.visitor
    updates = actions.choose_patch(yours, 0, 0)
    assert "1.png" not in "".join(map(str, updates.values()))


def test_what_a_visitor_leaves_is_let_go(actions, visit):
    held = actions.page.photos.nbytes
    first, second = upload(actions, 21), upload(actions, 22)
    actions.choose_first(visit, first)
    actions.choose_second(visit, first)
    actions.choose_first(visit, second)
    assert actions.page.photos.get(first).name == "21.png"
    actions.choose_second(visit, "China")
    with pytest.raises(UserError, match="no longer held"):
        actions.page.photos.get(first)
    actions.choose_first(visit, "China")
    assert actions.page.photos.nbytes == held


def test_a_click_chooses_the_patch_below_it(actions, visit):
    actions.click(visit, SimpleNamespace(x=0.999, y=0.0))
    assert visit.patch == (0, 18)
    actions.click(visit, SimpleNamespace(rows=1, columns=1))
    assert visit.patch == (1, 18)
    actions.click(visit, SimpleNamespace(rows=0, columns=-1))
    assert visit.patch == (1, 17)


def test_the_outline_lies_over_the_clicked_point(actions, visit):
    x, y = 0.31, 0.72
    markup = actions.click(visit, SimpleNamespace(x=x, y=y))[actions.layout.photo]
    style = dict(re.findall(r"(left|top|width|height):([0-9.]+)%", markup))
    left, top, width, height = (float(style[name]) / 100 for name in ("left", "top", "width", "height"))
    assert left <= x <= left + width
    assert top <= y <= top + height


def test_a_mistake_leaves_the_visit_as_it_was(actions, visit):
    before = dict(vars(visit))
    with pytest.raises(UserError, match="no patch in row 13"):
        actions.choose_patch(visit, 13, 0)
    assert actions.choose_patch(visit, None, 0) == {}
    with pytest.raises(UserError, match="no longer held"):
        actions.choose_first(visit, "nobody's")
    with pytest.raises(UserError, match="no model sail-huge"):
        actions.choose_model(visit, "sail-huge")
    with pytest.raises(UserError, match="no layer 9; use one of 0, 1, 2, 3, 4, 5"):
        actions.choose_layer(visit, 9)
    assert vars(visit) == before


def test_each_tab_draws_what_it_shows_and_nothing_else(actions, visit):
    for tab in set(actions.layout.views) - {"chat"}:
        assert shown(actions.open_tab(visit, tab)) == {tab}
    assert actions.open_tab(visit, "chat") == {}
    assert shown(actions.choose_patch(visit, 1, 1)) == {"photo", "row", "column"}


def test_the_layer_changes_the_colors_of_components(actions, visit):
    actions.open_tab(visit, "components")
    pictures = [actions.choose_layer(visit, layer)[actions.layout.views["components"]] for layer in (0, 3, 0)]
    assert pictures[0] == pictures[2] != pictures[1]
    assert "at layer 3" in pictures[1]


def test_another_image_is_shown_at_the_same_layer(actions, visit):
    actions.choose_layer(visit, 2)
    updates = actions.choose_first(visit, "Flower")
    assert visit.layer == updates[actions.layout.layer].value == 2


def test_another_layer_does_not_segment_again(actions, visit):
    actions.open_tab(visit, "segmentation")
    assert actions.choose_layer(visit, 2) == {}


def test_a_second_image_is_matched_with(actions, visit):
    actions.open_tab(visit, "matches")
    markup = actions.choose_second(visit, upload(actions, 2))[actions.layout.views["matches"]]
    assert "pairs of patches of China and 2.png" in markup


def test_names_of_files_are_text(actions, visit):
    token = actions.page.photos.add(Photo('<img src="x">.png', noisy_png(3)))
    updates = actions.choose_first(visit, token)
    for markup in (updates[actions.layout.photo], updates[actions.layout.views["similarity"]]):
        assert "&lt;img" in markup
        assert '<img src="x">' not in markup


def test_another_model_begins_at_its_last_layer_and_cannot_chat(actions, visit):
    updates = actions.choose_model(visit, "raw/14")
    assert (visit.model, visit.layer) == ("raw/14", 0)
    assert updates[actions.layout.layer].visible is False
    answers = actions.ask(visit, "What is it?")
    next(answers)
    # The question is put back, and the conversation as it was.
    assert next(answers) == {actions.layout.conversation: [], actions.layout.question: "What is it?"}
    with pytest.raises(CheckpointError, match="raw/14 has no language model; models that chat are sail-tiny"):
        next(answers)


def test_answers_come_bit_by_bit_and_know_what_was_said(actions, visit):
    actions.choose_first(visit, "Scene")
    updates = list(actions.ask(visit, "Describe the image."))
    said = [update[actions.layout.conversation][-1]["content"] for update in updates]
    assert len(set(said)) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(said[1:]))
    [turn] = visit.turns
    assert turn == ("Describe the image.", said[-1])
    list(actions.ask(visit, "What color is it?"))
    messages = list(actions.ask(visit, "And its shape?"))[-1][actions.layout.conversation]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3


def test_masks_of_an_answer_are_over_the_image_until_the_next_question(actions, visit, monkeypatch):
    actions.choose_first(visit, "Scene")
    height, width = actions.page.photos.get("Scene").image_size
    mask = np.zeros((1, height, width), bool)
    mask[:, : height // 2] = True
    monkeypatch.setattr(type(load_chat().engine), "predict_masks", lambda engine, answers, *_: [mask for _ in answers])
    drawn = [update.get(actions.layout.views["chat"]) for update in actions.ask(visit, "Where is it?")]
    assert drawn[0] == ""
    assert set(drawn[1:-1]) == {None}
    assert "Masks of the answer over Scene: 1, of 50% of its pixels." in drawn[-1]
    assert visit.turns[0][1].__class__ is str
    assert next(actions.ask(visit, "And now?"))[actions.layout.views["chat"]] == ""
    for update in (actions.forget(visit), actions.choose_first(visit, "Flower")):
        assert update[actions.layout.views["chat"]] == ""


@pytest.mark.parametrize("name", ["Scene", "China"])
def test_masks_fit_the_picture_of_the_page(page, name):
    photo = page.photos.get(name)
    height, width = photo.image_size
    masks = np.zeros((2, height, width), bool)
    masks[0, :, : width // 2] = masks[1, :, width // 2 :] = True
    pixels, _ = view_masks(photo, masks)
    assert pixels.shape == photo.pixels.shape
    change = pixels.astype(int) - photo.pixels
    for half, index in ((np.s_[:, : width // 4], 0), (np.s_[:, -width // 4 :], 1)):
        expected = 0.55 * (np.array(mask_color(index)) - photo.pixels[half].astype(int))
        np.testing.assert_allclose(change[half], expected, atol=0.51)


def test_a_question_is_about_the_image_upright(actions, visit):
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(noise(98, 196)).save(file, "PNG", exif=exif)
    actions.choose_first(visit, actions.page.photos.add(Photo("turned.png", file.getvalue())))
    list(actions.ask(visit, "What is it?"))
    [prefix] = actions.page.conversations._held.get(visit.topic).conversation.prefixes
    assert prefix.image_size == (196, 98)


def test_a_conversation_that_was_let_go_goes_on(actions, visit):
    actions.choose_first(visit, "Scene")
    list(actions.ask(visit, "What is in the picture?"))
    held = actions.page.conversations._held
    kept = list(actions.ask(visit, "What color is it?"))[-1]
    visit.turns.pop()
    held.drop(visit.topic)
    again = list(actions.ask(visit, "What color is it?"))[-1]
    assert kept[actions.layout.conversation] == again[actions.layout.conversation]


def test_an_answer_that_nobody_waits_for_was_not_said(actions, visit):
    actions.choose_first(visit, "Scene")
    list(actions.ask(visit, "What is in the picture?"))
    answers = actions.ask(visit, "Describe the image.")
    next(answers), next(answers)
    answers.close()
    held = actions.page.conversations._held
    assert len(held.get(visit.topic).messages) == 4
    list(actions.ask(visit, "What color is it?"))
    said = [message["content"][-1]["text"] for message in held.get(visit.topic).messages[::2]]
    assert said == ["What is in the picture?", "What color is it?"]


def test_another_image_begins_another_conversation(actions, visit):
    list(actions.ask(visit, "What is it?"))
    updates = actions.choose_first(visit, "Flower")
    assert updates[actions.layout.conversation] == []
    assert visit.turns == []


def test_an_answer_about_an_image_that_was_left_ends(actions, visit):
    actions.choose_first(visit, "Scene")
    answers = actions.ask(visit, "Describe the image.")
    next(answers), next(answers)
    actions.choose_first(visit, "Flower")
    assert list(answers) == []
    assert visit.turns == []


def test_an_answer_ends_where_its_conversation_is_cleared(actions, visit):
    actions.choose_first(visit, "Scene")
    answers = actions.ask(visit, "Describe the image.")
    next(answers), next(answers)
    actions.forget(visit)
    assert list(answers) == []
    assert visit.turns == []


def test_an_image_that_is_chosen_after_the_last_word_has_no_turns(actions, visit):
    actions.choose_first(visit, "Scene")
    answers = list(actions.ask(visit, "How many things are there?"))
    actions.forget(visit)
    again = actions.ask(visit, "How many things are there?")
    assert [next(again) for _ in answers] == answers
    actions.choose_first(visit, "Flower")
    assert list(again) == []
    assert visit.turns == []


def test_what_is_chosen_while_another_image_comes_stays_chosen(actions, visit, monkeypatch):
    draw = actions._draw_photo

    def draw_slowly(changed):
        actions.open_tab(visit, "components")
        actions.choose_second(visit, "Scene")
        return draw(changed)

    monkeypatch.setattr(actions, "_draw_photo", draw_slowly)
    updates = actions.choose_first(visit, "Flower")
    assert (visit.first, visit.second, visit.tab) == ("Flower", "Scene", "components")
    assert "Principal components of the patches of Flower" in updates[actions.layout.views["components"]]


@pytest.mark.parametrize("tab", ["similarity", "components", "matches"])
def test_a_model_that_is_chosen_while_an_image_comes_shows_a_layer_and_a_patch_that_it_has(
    actions, visit, monkeypatch, tab
):
    """And an image that is chosen while a layer of another model is drawn."""
    actions.open_tab(visit, tab)
    draw, meanwhile = actions._draw_tab, [lambda: actions.choose_model(visit, "raw/14")]

    def draw_slowly(changed):
        drawn = draw(changed)
        if meanwhile:
            meanwhile.pop()()
        return drawn

    monkeypatch.setattr(actions, "_draw_tab", draw_slowly)
    updates = actions.choose_first(visit, "Flower")
    assert (visit.model, visit.first, visit.layer) == ("raw/14", "Flower", 0)
    assert updates[actions.layout.layer].value == 0
    assert "at layer 0" in updates[actions.layout.views[tab]]
    meanwhile.append(lambda: actions.choose_model(visit, "sail-tiny"))
    actions.choose_layer(visit, 0)
    assert (visit.model, visit.layer) == ("sail-tiny", 0)
    meanwhile.append(lambda: actions.choose_first(visit, "Scene"))
    actions.choose_patch(visit, 12, 18) if tab == "similarity" else actions.choose_layer(visit, 2)
    assert "Scene" in actions.open_tab(visit, tab)[actions.layout.views[tab]]


def test_a_question_that_was_cleared_is_not_put_back(actions, visit):
    actions.choose_model(visit, "raw/14")
    answers = actions.ask(visit, "What is it?")
    next(answers)
    actions.forget(visit)
    with pytest.raises(CheckpointError, match="raw/14 has no language model"):
        next(answers)


def change_of_row(blocks):
    """What happens when a row is written."""
    [row] = (key for key, block in blocks.blocks.items() if block.elem_id == "row")
    [change] = (function.fn for function in blocks.fns.values() if (row, "input") in function.targets)
    return change


def test_a_visit_that_the_server_does_not_know_says_so(page):
    [said] = change_of_row(build_page(page))(None, 1, 1).values()
    assert "this visit is over" in said
    assert "reload the page" in said


def test_fields_go_back_to_what_is_shown_where_something_is_refused(page, visit):
    updates = {block.elem_id: value for block, value in change_of_row(build_page(page))(visit, 77, 1).items()}
    assert "no patch in row 77" in updates.pop("message")
    assert updates == {"model": "sail-tiny", "row": 6, "column": 9, "layer": 5}


def test_a_conversation_that_is_cleared_begins_again(actions, visit):
    actions.choose_first(visit, "Scene")
    before = list(actions.ask(visit, "Describe the image."))[-1]
    assert actions.forget(visit) == {actions.layout.conversation: [], actions.layout.views["chat"]: ""}
    assert list(actions.ask(visit, "Describe the image."))[-1] == before


def test_a_conversation_about_an_image_that_is_no_longer_held_is_cleared(actions, visit):
    token = upload(actions, 1)
    actions.choose_first(visit, token)
    visit.turns = [("What is it?", "a ball")]
    actions.page.photos.drop(token)
    assert actions.forget(visit)[actions.layout.conversation] == []
    with pytest.raises(UserError, match="no longer held here"):
        next(actions.ask(visit, "What is it?"))


def test_a_question_that_cannot_be_asked_says_so(actions, visit):
    with pytest.raises(UserError, match="empty"):
        list(actions.ask(visit, " "))
    assert visit.turns == []


def test_segmentation_is_that_of_the_head(page, head):
    from evals.segmentation.option_checks import inference_of
    from heads.dense.inference import predict
    from heads.dense.registry import load_dense_head
    from heads.dense.segmenter import load_segmenter

    image = Image.fromarray(noise(280, 560))
    trained = load_dense_head(head)
    segmenter = load_segmenter(trained)
    [labels] = predict(segmenter, inference_of(trained, 14), [image], lambda item: item)
    overlay, legend = load_segmentation(str(head))(image)
    drawn = [CLASSES[index] for index in np.unique(labels.numpy()) if index]
    assert [name for name, _ in legend] == drawn
    clear = labels.numpy() == 0
    assert (overlay[clear] == np.asarray(image)[clear]).all()
    # The edges of the photograph show through, and even out.
    for name, color in legend:
        mean = overlay[labels.numpy() == CLASSES.index(name)].mean(0)
        np.testing.assert_allclose(mean, color, atol=40)


def test_the_page_says_what_sail_tiny_is(page):
    words = about_model(page.encoder.specs["sail-tiny"])
    assert "trained on drawn scenes" in words
    assert "it is not SAIL-7B" in words
    assert about_model(page.encoder.specs["raw/14"]).startswith("**raw/14**: 0 million parameters")


def test_every_event_is_private_and_every_picture_has_a_text(page, actions):
    blocks = build_page(page)
    assert {function.api_visibility for function in blocks.fns.values()} == {"private"}
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', "".join(map(str, actions.begin().values())))
    assert len(alts) == 2
    assert all(alts)


@pytest.mark.parametrize(
    ("error", "words", "is_in_terminal"),
    [
        (UserError("no such\nthing"), "no such thing", False),
        (MemoryError(), "the memory of this machine is not enough", False),
        (KeyError("grid"), "something went wrong here (KeyError: &#x27;grid&#x27;)", True),
    ],
    ids=["mistake", "memory", "fault"],
)
def test_each_failure_is_a_line_on_the_page_and_faults_are_in_the_terminal(
    page, visit, monkeypatch, capsys, error, words, is_in_terminal
):
    def fail(*_):
        raise error

    monkeypatch.setattr(page.encoder, "encode", fail)
    updates = {block.elem_id: value for block, value in change_of_row(build_page(page))(visit, 1, 1).items()}
    assert words in updates["message"]
    assert ("Traceback" in capsys.readouterr().err) == is_in_terminal
