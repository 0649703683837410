"""Conversations: what they cost, that they say what fresh calls say, and how they fail."""

import pytest
import torch
from chat_helpers import QUESTIONS, SHORT, scene
from helpers import noise
from PIL import Image

from sail_encoder import ImageError, Sampling, UserError, ask_each, load_chat
from sail_encoder.chat.conversation import ask_together


def test_ten_questions_cost_one_image_encoding_and_equal_fresh_calls(chat, count_images):
    together = ask_each(chat, scene(), QUESTIONS, SHORT)
    assert count_images == [8 * 11]
    fresh = []
    for question in QUESTIONS:
        chat.reset()
        fresh.append(chat.ask(question, scene(), SHORT))
    assert together == fresh
    assert len(count_images) == 11
    assert len(set(together)) > 3


def test_turns_encode_nothing_twice_and_equal_one_pass(chat, count_images, loaded):
    """What the conversation's cache predicts is what one pass over all its tokens predicts."""
    seen = []
    hook = loaded.model.model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(output.last_hidden_state.shape[1]), with_kwargs=True
    )
    for question in ("What color is it?", "How big is it?", "Where is it?"):
        chat.ask(question, None if chat.messages else scene(), SHORT)
    hook.remove()
    ids = chat.conversation.ids
    assert count_images == [8 * 11]
    assert sum(seen) + 8 * 11 + 2 == len(ids) - 1
    patches = loaded.processor.image_processor(Image.fromarray(scene()), return_tensors="pt")
    with torch.no_grad():
        whole = loaded.model(
            input_ids=torch.tensor([ids]), pixel_values=patches["pixel_values"], image_grid_hw=patches["image_grid_hw"]
        ).logits[0]
    answers = loaded.processor.decode(whole.argmax(-1)[:-1][torch.tensor(_answer_positions(ids, loaded))])
    assert answers.split() == " ".join(m["content"][0]["text"] for m in chat.messages[1::2]).split()


def _answer_positions(ids, loaded):
    """Positions that predict the tokens of the answers."""
    end, mark = loaded.processor.tokenizer.eos_token_id, loaded.processor.tokenize(["x [/INST]"], [])[0][0][-1]
    positions, inside = [], False
    for position, token in enumerate(ids):
        if inside and token != end:
            positions.append(position - 1)
        inside = token == mark or (inside and token != end)
    return positions


def storage(chat):
    """Where the keys and values of a conversation lie."""
    return [states.data_ptr() for layer in chat.context.cache.layers for states in (layer.keys, layer.values)]


def test_forks_do_not_touch_each_other(chat):
    chat.look(scene())
    first, second = chat.fork(), chat.fork()
    assert storage(first) == storage(second) == storage(chat), "what is encoded is shared, not copied"
    before = storage(chat)
    answer = first.ask("What color is it?", sampling=SHORT)
    first.ask("How big is it?", sampling=SHORT)
    assert second.ask("What color is it?", sampling=SHORT) == answer
    assert len(first.messages) == 4
    assert len(second.messages) == 2
    assert not chat.messages
    assert storage(chat) == before
    assert not set(storage(first)) & {*storage(second), *before}
    layers = zip(first.context.cache.layers, chat.context.cache.layers, strict=True)
    assert all(mine.keys.shape[-2] > base.keys.shape[-2] for mine, base in layers)


def test_a_second_image_in_a_later_turn(chat, count_images):
    chat.ask("What color is it?", scene(3), SHORT)
    chat.ask("What color is it?", scene(5), SHORT)
    assert count_images == [88, 88]
    assert len(chat.conversation.prefixes) == 2
    assert chat.conversation.ids.count(chat.model.config.image_token_id) == 176


@pytest.mark.parametrize("window", [20, 100])
def test_an_answer_within_a_window_is_that_of_generate(window):
    """One window is shorter than the image, of which a conversation keeps its end alone, the other longer."""
    chat = load_chat("sail-tiny", sliding_window=window)
    content = [{"type": "image", "image": Image.fromarray(scene())}, {"type": "text", "text": QUESTIONS[0]}]
    inputs = chat.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    said = chat.model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert inputs["image_grid_hw"].tolist() == [[8, 11]]
    answer = chat.ask(QUESTIONS[0], scene(), Sampling(max_new_tokens=24))
    assert answer == chat.processor.decode(said, skip_special_tokens=True).strip()
    assert len(answer.split()) > 3


def test_text_alone(chat):
    assert isinstance(chat.ask("What color is it?", sampling=SHORT), str)
    assert chat.conversation.prefixes == []


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(chat):
    chat.ask("What color is it?", scene(), SHORT)
    before = (list(chat.conversation.ids), chat.context.cache.get_seq_length(), len(chat.messages))
    with pytest.raises(UserError, match="more than the 2,048 of this model"):
        chat.ask("word " * 3000, sampling=SHORT)
    with pytest.raises(UserError, match="prompt is empty"):
        chat.ask("  ")
    with pytest.raises(ImageError, match="no such file"):
        chat.ask("What?", "nowhere.png")
    assert (list(chat.conversation.ids), chat.context.cache.get_seq_length(), len(chat.messages)) == before
    assert chat.ask("How big is it?", sampling=SHORT)


def test_sampling_is_reproducible_and_checked(chat):
    warm = Sampling(12, temperature=1.5)
    chat.look(noise(60, 60))
    torch.manual_seed(0)
    first = [chat.fork().ask("Describe the image.", sampling=warm) for _ in range(4)]
    torch.manual_seed(0)
    assert [chat.fork().ask("Describe the image.", sampling=warm) for _ in range(4)] == first
    assert len(set(first)) > 1
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}):
        with pytest.raises(UserError, match="allowed is"):
            Sampling(**wrong)


def test_vision_tokens_are_never_said(chat, monkeypatch):
    """Even where they are the likeliest tokens by far."""
    head = chat.model.lm_head
    vision = chat.model.config.all_vision_token_ids
    assert len(vision) == 6

    def prefer_vision(module, args, logits):
        logits[..., vision] += 1000
        return logits

    hook = head.register_forward_hook(prefer_vision)
    chat.ask("What color is it?", scene(), SHORT)
    hook.remove()
    assert not set(vision) & set(
        chat.conversation.ids[chat.conversation.ids.index(chat.processor.tokenizer.bos_token_id) :]
    )


def test_a_turn_that_fails_does_not_show_its_image(chat, count_images):
    """Neither as the first of a conversation, which is encoded at once, nor later."""
    fresh = chat.fork().ask("What color is it?", scene(), SHORT)
    for _ in range(2):
        with pytest.raises(UserError, match="more than the 2,048 of this model"):
            chat.ask("word " * 3000, scene(), SHORT)
    assert chat.ask("What color is it?", scene(), SHORT) == fresh
    with pytest.raises(UserError, match="more than the 2,048 of this model"):
        chat.ask("word " * 3000, scene(5), SHORT)
    chat.ask("What color is it?", scene(5), SHORT)
    assert chat.conversation.ids.count(chat.model.config.image_token_id) == 176


@pytest.mark.parametrize("window", ["none", 12, 60, 400])
def test_a_batch_of_conversations_says_what_each_says_alone(window):
    """Whatever their images, the lengths of their questions, and how far back text sees."""
    chat = load_chat("sail-tiny", sliding_window=window)
    shown = []
    for image in (noise(60, 90), noise(112, 112), None):
        shown.append(chat.fork())
        if image is not None:
            shown[-1].look(image)
    for prompts in (["What color is it?"] * 4, ["What color is it?", "Describe the image. " * 4, *QUESTIONS[2:4]]):
        alone = [
            one.fork().ask(prompt, sampling=SHORT) for one, prompt in zip([*shown, shown[0]], prompts, strict=True)
        ]
        assert ask_together([*shown, shown[0]], prompts, SHORT) == alone
    assert all(one.messages == [] for one in shown)


def test_a_prompt_that_is_no_text_is_refused(chat):
    with pytest.raises(UserError, match=r"the prompt holds '\\udce9', half of a character; write it in UTF-8"):
        chat.ask("caf\udce9")
