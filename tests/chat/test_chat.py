import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from helpers import noise
from PIL import Image
from safetensors.torch import load_file, save_file

from evals.scenes import draw_scene
from sail_encoder import Chat, CheckpointError, ImageError, Sampling, UserError, ask_each, load_chat
from sail_encoder.chat import command
from sail_encoder.chat.answers import AnswerFile
from sail_encoder.chat.batch import answer_all
from sail_encoder.chat.conversation import ask_together
from sail_encoder.chat.questions import read_queries
from sail_encoder.chat.terminal import answer_streamed, converse
from sail_encoder.hub import TINY_FOLDER
from sail_encoder.sail.convert import convert

SHORT = Sampling(max_new_tokens=12)
QUESTIONS = [
    "Describe the image.",
    "What color is it?",
    "How big is it?",
    "Where is it?",
    "What shape is it?",
    "Is there a red star?",
    "What is the background like?",
    "How many things are there?",
    "Which shape do you see?",
    "What is in the center?",
]


@pytest.fixture(scope="module")
def loaded():
    return load_chat("sail-tiny")


@pytest.fixture
def chat(loaded):
    return Chat(loaded.model, loaded.processor)


@pytest.fixture
def count_images(loaded):
    """How many patches each forward pass embeds."""
    counts = []
    hook = loaded.model.model.vis_embed.register_forward_hook(lambda _, args, output: counts.append(len(output)))
    yield counts
    hook.remove()


def scene(seed=3):
    return draw_scene(seed, things=1, height=112, width=154).image


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
    ids = chat._ids
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
    end, mark = loaded.processor.tokenizer.eos_token_id, loaded.processor.tokenize(["x [/INST]"], [])[0].ids[-1]
    positions, inside = [], False
    for position, token in enumerate(ids):
        if inside and token != end:
            positions.append(position - 1)
        inside = token == mark or (inside and token != end)
    return positions


def storage(chat):
    """Where the keys and values of a conversation lie."""
    return [states.data_ptr() for layer in chat._cache.layers for states in (layer.keys, layer.values)]


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
    layers = zip(first._cache.layers, chat._cache.layers, strict=True)
    assert all(mine.keys.shape[-2] > base.keys.shape[-2] for mine, base in layers)


def test_a_second_image_in_a_later_turn(chat, count_images):
    chat.ask("What color is it?", scene(3), SHORT)
    chat.ask("What color is it?", scene(5), SHORT)
    assert count_images == [88, 88]
    assert len(chat._grids) == 2
    assert chat._ids.count(chat.model.config.image_token_id) == 176


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
    assert chat._grids == []


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(chat):
    chat.ask("What color is it?", scene(), SHORT)
    before = (list(chat._ids), chat._cache.get_seq_length(), len(chat.messages))
    with pytest.raises(UserError, match="more than the 2,048 of this model"):
        chat.ask("word " * 3000, sampling=SHORT)
    with pytest.raises(UserError, match="prompt is empty"):
        chat.ask("  ")
    with pytest.raises(ImageError, match="no such file"):
        chat.ask("What?", "nowhere.png")
    assert (list(chat._ids), chat._cache.get_seq_length(), len(chat.messages)) == before
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
    assert not set(vision) & set(chat._ids[chat._ids.index(chat.processor.tokenizer.bos_token_id) :])


def test_answers_stream_and_stop(chat, capsys):
    chat.look(scene())
    answer_streamed(chat, "Describe the image.", SHORT)
    assert capsys.readouterr().out.strip() == chat.messages[-1]["content"][0]["text"]


def test_interrupted_answers_stay_part_of_the_conversation(chat, capsys):
    chat.look(scene())
    tokens = []
    head = chat.model.lm_head

    def interrupt(module, args, logits):
        tokens.append(1)
        if len(tokens) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    hook = head.register_forward_hook(interrupt)
    answer_streamed(chat, "Describe the image.", SHORT)
    hook.remove()
    captured = capsys.readouterr()
    assert "[stopped]" in captured.err
    assert len(chat.messages[-1]["content"][0]["text"].split()) <= 4
    assert chat.ask("What color is it?", sampling=SHORT)


def test_interactive_conversation(chat, capsys, tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    lines = [
        f"/image {tmp_path / 'a.png'}",
        "What color is it?",
        "",
        "/nonsense",
        "/image nowhere.png",
        "How big is it?",
    ]
    inputs = iter([*lines, "/reset", "/quit"])
    assert converse(chat, SHORT, lambda prompt: next(inputs)) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "no command /nonsense" in captured.err
    assert "no such file" in captured.err
    assert chat.messages == []


@contextmanager
def signal_at(module, call, number):
    """A signal that comes while a module computes, at which call of it, from one on."""
    counted = []

    def send(_, args, output):
        counted.append(1)
        if len(counted) == call:
            signal.raise_signal(number)

    hook = module.register_forward_hook(send)
    try:
        yield
    finally:
        hook.remove()


def test_a_question_that_is_interrupted_twice_leaves_the_conversation_as_it_was(chat, capsys):
    chat.ask("What color is it?", scene(5), SHORT)
    before = list(chat._ids)
    inputs = iter(["How big is it?", "/quit"])
    first, second = chat.model.model.layers[:2]
    with signal_at(first, 1, signal.SIGINT), signal_at(second, 1, signal.SIGINT):
        assert converse(chat, SHORT, lambda prompt: next(inputs)) == 0
    captured = capsys.readouterr().err
    assert captured.index("stopping at the first token; once more") < captured.index("[stopped]")
    assert chat._ids == before
    assert len(chat.messages) == 2
    assert chat.ask("How big is it?", sampling=SHORT)


def test_an_image_whose_encoding_is_interrupted_is_not_shown(chat, capsys, tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    inputs = iter([f"/image {tmp_path / 'a.png'}", "/quit"])
    with signal_at(chat.model.model.vis_embed, 1, signal.SIGINT):
        assert converse(chat, SHORT, lambda prompt: next(inputs)) == 0
    captured = capsys.readouterr().err
    assert "[stopped]" in captured
    assert "looking at it" not in captured
    assert chat._next_images == []


def test_a_request_to_end_ends_the_conversation_behind_the_answer(chat, capsys):
    inputs = iter(["Describe the image.", "What color is it?"])
    with signal_at(chat.model.lm_head, 2, signal.SIGTERM):
        assert converse(chat, SHORT, lambda prompt: next(inputs)) == 143
    assert len(chat.messages) == 2
    assert "[stopped]" in capsys.readouterr().err


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
    assert chat._ids.count(chat.model.config.image_token_id) == 176


@pytest.mark.parametrize("ending", [EOFError, KeyboardInterrupt])
def test_ends_of_input(chat, ending):
    def read(prompt, state=[]):  # noqa: B006 - remembers between calls
        state.append(1)
        raise ending if len(state) == 1 else EOFError

    assert converse(chat, SHORT, read) == 0


@pytest.fixture
def questions(tmp_path):
    for seed in (3, 5):
        Image.fromarray(draw_scene(seed).image).save(tmp_path / f"{seed}.png")
    rows = [
        {"image": "3.png", "prompt": "What color is it?"},
        {"prompt": "What color is it?"},
        {"image": "nowhere.png", "prompt": "What color is it?"},
        {"image": "5.png", "prompt": "What color is it?"},
        {"image": "3.png", "prompt": "word " * 3000},
        {"image": "3.png", "prompt": "How big is it?"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def answers_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer_file(chat, questions, target, sampling=SHORT, batch_size=2, **options):
    settings = {"model": "sail-tiny", "temperature": sampling.temperature}
    with AnswerFile(target, read_queries(questions), settings, **options) as answers:
        return answer_all(chat, answers, questions.parent, sampling, batch_size)


def test_a_file_of_questions(chat, questions, tmp_path):
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    assert answer_file(chat, questions, alone, batch_size=1) == 1
    assert answer_file(chat, questions, together, batch_size=4) == 1
    assert answers_in(alone) == answers_in(together)
    rows = answers_in(alone)
    assert ["error" in row for row in rows] == [False, False, True, False, True, False]
    chat.reset()
    assert rows[0]["answer"] == chat.ask("What color is it?", tmp_path / "3.png", SHORT)


@pytest.fixture
def count_questions(chat, monkeypatch):
    """How many questions each call of `generate` answers."""
    counts, generate = [], chat.model.generate
    monkeypatch.setattr(
        chat.model, "generate", lambda **inputs: counts.append(len(inputs["input_ids"])) or generate(**inputs)
    )
    return counts


def test_a_killed_file_run_goes_on(chat, questions, tmp_path, count_questions):
    whole, target = tmp_path / "whole.jsonl", tmp_path / "target.jsonl"
    answer_file(chat, questions, whole)
    assert sum(count_questions) == 4
    lines = whole.read_text().splitlines(keepends=True)
    target.write_text("".join(lines[:3]) + lines[3][:10])
    (tmp_path / "target.jsonl.run.json").write_text((tmp_path / "whole.jsonl.run.json").read_text())
    answer_file(chat, questions, target)
    assert target.read_text() == whole.read_text()
    assert sum(count_questions) == 4 + 2


def write_questions(path, rows):
    path.write_text("\n".join(json.dumps({"image": image, "prompt": prompt}) for image, prompt in rows))
    return path


def test_questions_about_one_image_in_a_row_cost_one_encoding(chat, questions, tmp_path, count_images, count_questions):
    source = write_questions(
        tmp_path / "run.jsonl", [*(("3.png", q) for q in QUESTIONS), ("5.png", "What color is it?")]
    )
    answer_file(chat, source, tmp_path / "a.jsonl", batch_size=4)
    assert len(count_images) == 2
    assert count_questions == [4, 4, 3]
    fresh = [chat.fork().ask(query.prompt, tmp_path / query.image, SHORT) for query in read_queries(source)]
    assert [row["answer"] for row in answers_in(tmp_path / "a.jsonl")] == fresh


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


@pytest.fixture
def little_memory(chat, monkeypatch):
    """Lets two short questions through at a time, and no long one; tells of the batches that were tried."""
    tried, generate = [], chat.model.generate

    def try_to_generate(**inputs):
        rows, length = inputs["input_ids"].shape
        tried.append(rows)
        if rows > 2 or length > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    monkeypatch.setattr(chat.model, "generate", try_to_generate)
    return tried


def test_batches_that_do_not_fit_into_memory_are_halved(chat, questions, tmp_path, little_memory):
    rows = [(None, "What color is it?")] * 5 + [(None, "word " * 300), (None, "What color is it?")]
    source = write_questions(tmp_path / "run.jsonl", rows)
    assert answer_file(chat, source, tmp_path / "a.jsonl", batch_size=5) == 1
    assert little_memory == [5, 2, 2, 2, 1, 1, 1]
    lines = answers_in(tmp_path / "a.jsonl")
    assert ["error" in line for line in lines] == [False] * 5 + [True, False]
    assert lines[5]["error"] == "out of memory with this question alone; lower --max_tokens or --max_new_tokens"


def test_other_errors_of_a_batch_are_told(chat, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(chat.model, "generate", lambda **inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer_file(chat, questions, tmp_path / "a.jsonl")


def test_errors_are_tried_again(chat, questions, tmp_path, count_questions):
    target, aside = tmp_path / "a.jsonl", tmp_path / "a.jsonl.aside.jsonl"
    assert answer_file(chat, questions, target) == 1
    first, asked = answers_in(target), sum(count_questions)
    shutil.copy(tmp_path / "5.png", tmp_path / "nowhere.png")
    assert answer_file(chat, questions, target) == 1
    second = answers_in(target)
    assert sum(count_questions) == asked + 1
    assert second[2] == {"prompt": "What color is it?", "image": "nowhere.png", "answer": first[3]["answer"]}
    assert [*second[:2], *second[3:]] == [*first[:2], *first[3:]]
    assert not aside.exists()


def test_a_kill_while_errors_are_tried_again_loses_no_answer(chat, questions, tmp_path, count_questions):
    target = tmp_path / "a.jsonl"
    answer_file(chat, questions, target)
    first, asked = target.read_text(), sum(count_questions)
    with AnswerFile(target, read_queries(questions), {"model": "sail-tiny", "temperature": 0.0}) as answers:
        assert [query.image for query in answers.next_queries(5)] == ["nowhere.png", "3.png"]
        assert len(answers_in(target)) == 2
    with pytest.raises(UserError, match="temperature was"):
        answer_file(chat, questions, target, Sampling(12, temperature=1.5))
    assert answer_file(chat, questions, target) == 1
    assert target.read_text() == first
    assert sum(count_questions) == asked
    with AnswerFile(target, read_queries(questions), {}, overwrite=True) as answers:
        assert len(answers.next_queries(9)) == 6


def test_answers_end_where_the_range_of_the_model_ends(chat, questions, tmp_path, monkeypatch):
    """The longest prompt of a batch takes no room from the others, and none goes beyond the limit."""
    source = tmp_path / "two.jsonl"
    prompts = ("Describe the image.", "Describe the image. " * 8)
    source.write_text("\n".join(json.dumps({"image": "3.png", "prompt": prompt}) for prompt in prompts))
    lengths = [len(chat.processor.tokenize([f"<s>[INST] {prompt} [/INST]"], [])[0].ids) for prompt in prompts]
    patches = chat.processor.image_processor(Image.open(tmp_path / "3.png"), return_tensors="pt")["pixel_values"]
    limit = len(patches) + 2 + lengths[1] + 3
    monkeypatch.setattr(chat.model.config, "max_position_embeddings", limit)
    whole = Sampling(max_new_tokens=12)
    answer_file(chat, source, tmp_path / "a.jsonl", whole)
    first, second = (row["answer"] for row in answers_in(tmp_path / "a.jsonl"))
    assert [first, second] == [chat.fork().ask(prompt, tmp_path / "3.png", whole) for prompt in prompts]
    assert len(chat.processor.tokenizer(second, add_special_tokens=False)["input_ids"]) <= 3
    assert len(first) > len(second)


def test_answers_of_other_settings_are_refused(chat, questions, tmp_path):
    target, warm = tmp_path / "a.jsonl", Sampling(12, temperature=1.5)
    answer_file(chat, questions, target)
    with pytest.raises(UserError, match=r"temperature was 0.0, now 1.5; use another --output or --overwrite true"):
        answer_file(chat, questions, target, warm)
    assert answer_file(chat, questions, target, warm, overwrite=True) == 1
    assert answer_file(chat, questions, target, warm) == 1
    with pytest.raises(UserError, match=r"temperature was 1\.5, now 0\.0"):
        answer_file(chat, questions, target)
    (tmp_path / "a.jsonl.run.json").unlink()
    with pytest.raises(UserError, match=r"no a\.jsonl\.run\.json says how they were made"):
        answer_file(chat, questions, target, warm)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"image": "a.png"}', 'has no "prompt"'),
        ('{"prompt": "x", "image": 3}', "not a path"),
        ('{"prompt": "x"}\n{"prompt": " "}', "line 2: the prompt is empty"),
        ('{"prompt": "a <vpatch>"}', "line 1: the prompt holds <vpatch>"),
        ('{"prompt": "a \\ud83d"}', r"line 1: the prompt holds '\\ud83d', half of a character"),
        ('{"prompt": "a", "image": "\\udce9.png"}', r"line 1: the path holds '\\udce9', half of a character"),
        ('{"prompt": "caf\xe9"}', r"q\.jsonl is not UTF-8 .* at byte 15\); save it as UTF-8"),
        ("", "holds no questions"),
    ],
)
def test_bad_question_files(tmp_path, content, message):
    (tmp_path / "q.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        read_queries(tmp_path / "q.jsonl")


def test_a_string_may_hold_any_character(tmp_path):
    prompts = ["a\u2028b", "a\u2029b\x85c\x0cd", "\U0001f600"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "q.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    assert [query.prompt for query in read_queries(tmp_path / "q.jsonl")] == prompts


def test_a_prompt_that_is_no_text_is_refused(chat):
    with pytest.raises(UserError, match=r"the prompt holds '\\udce9', half of a character; write it in UTF-8"):
        chat.ask("caf\udce9")


def test_answers_to_other_questions_are_refused(questions, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "another", "image": null, "answer": "x"}\n')
    (tmp_path / "a.jsonl.run.json").write_text('{"settings": {}}')
    with pytest.raises(UserError, match="answers another question"):
        AnswerFile(tmp_path / "a.jsonl", read_queries(questions), {})


def test_where_answers_cannot_go(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "a.jsonl"):
        with pytest.raises(UserError, match=r"cannot be written .*; use another --output"):
            AnswerFile(target, [], {})
    for notes in ("my notes\n", "my notes", "my\nnotes", '{"a": 1}\n', '{"prompt": "x"}\n', '{"b"'):
        (tmp_path / "notes.txt").write_text(notes)
        for overwrite in (False, True):
            with pytest.raises(UserError, match="holds something other than answers; use another --output"):
                AnswerFile(tmp_path / "notes.txt", [], {}, overwrite)
        assert (tmp_path / "notes.txt").read_text() == notes
    with AnswerFile(tmp_path / "new" / "a.jsonl", [], {}) as answers:
        assert answers.done == 0


def test_an_encoder_cannot_chat(tmp_path):
    convert("sail-tiny", str(tmp_path / "encoder"), encoder_only=True)
    with pytest.raises(CheckpointError, match="without language head"):
        load_chat(str(tmp_path / "encoder"))


def test_options_reach_the_model(loaded):
    assert load_chat("sail-tiny", sliding_window=7).model.config.sliding_window == 7
    assert load_chat("sail-tiny", sliding_window="none").model.config.sliding_window is None
    assert load_chat("sail-tiny", max_tokens=9).processor.image_processor.max_tokens == 9
    assert load_chat("sail-tiny", dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_command(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")

    def sail(*arguments, text=None):
        command = [sys.executable, "-m", "sail_cli", "chat", *arguments]
        return subprocess.run(command, capture_output=True, text=True, input=text)

    question = "What color is it?"
    answer = load_chat("sail-tiny").ask(question, tmp_path / "a.png")
    printed = sail(str(tmp_path / "a.png"), question)
    assert (printed.returncode, printed.stdout) == (0, answer + "\n")
    assert sail(str(tmp_path / "a.png"), text=f"{question}\n").stdout == f"> {answer}\n> "
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "a.png", "prompt": question}))
    files = ("--input", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "new" / "a.jsonl"))
    assert sail(*files).returncode == 0
    assert [row["answer"] for row in answers_in(tmp_path / "new" / "a.jsonl")] == [answer]
    assert "temperature was 0.0, now 1.0" in sail(*files, "--temperature", "1").stderr


def test_weights_that_have_changed_in_place_are_refused(tmp_path):
    model = shutil.copytree(TINY_FOLDER, tmp_path / "model")
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "What color is it?"}))
    files = {"input": str(tmp_path / "q.jsonl"), "output": str(tmp_path / "a.jsonl"), "model": str(model)}
    assert command.chat(**files, max_new_tokens=1) == 0
    (model / "README.md").write_text("notes")
    assert command.chat(**files, max_new_tokens=1) == 0
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights was .*, now .*; use another --output or --overwrite true"):
        command.chat(**files, max_new_tokens=1)


def test_wrong_use_is_told_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("sail_encoder.chat.conversation.load_chat", lambda *options: pytest.fail("loaded a model"))
    (tmp_path / "q.jsonl").write_text("{")
    files = {"input": str(tmp_path / "q.jsonl"), "output": str(tmp_path / "a.jsonl")}
    for options, message in (
        ({"input": "q.jsonl"}, "--input and --output go together"),
        ({**files, "output": files["input"]}, "--input and --output are both"),
        ({**files, "image": "a.png"}, "IMAGE and PROMPT do not go with --input"),
        ({**files, "prompt": "What?"}, "IMAGE and PROMPT do not go with --input"),
        ({**files, "batch_size": 0}, "--batch_size cannot be 0"),
        (files, "line 1 is not JSON"),
        ({"image": str(tmp_path / "nowhere.png"), "prompt": "What?"}, r"nowhere\.png: no such file"),
        ({"image": str(tmp_path / "nowhere.png")}, r"nowhere\.png: no such file"),
        ({"image": str(tmp_path / "q.jsonl"), "prompt": "What?"}, r"q\.jsonl"),
        ({"prompt": " "}, "the prompt is empty; ask something"),
    ):
        with pytest.raises(UserError, match=message):
            command.chat(**options)
