"""Files of questions and answers: batches, kills, errors and what is refused."""

import json
import shutil

import pytest
import torch
from chat_helpers import QUESTIONS, SHORT, answers_in
from PIL import Image

from evals.scenes import draw_scene
from sail_encoder import Sampling, UserError
from sail_encoder.chat.answers import AnswerFile
from sail_encoder.chat.batch import answer_all
from sail_encoder.chat.questions import read_queries


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
    lengths = [len(chat.processor.tokenize([f"<s>[INST] {prompt} [/INST]"], [])[0][0]) for prompt in prompts]
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
