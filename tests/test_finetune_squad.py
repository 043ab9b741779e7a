"""Fine-tuning on SQuAD: its files, its metrics, windows, answers, and whole runs."""

import itertools
import json
import math

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the demo extra")

from transformers import AutoModel, AutoModelForQuestionAnswering

from checkpoints import real_data
from int8tile.finetune import Settings, UsageError, checkpoint, run, squad, squad_metrics
from int8tile.finetune.squad import Answer, Question
from int8tile.finetune.tasks.answers import best_span, predict
from int8tile.finetune.tasks.windows import Window, windows

CONTEXT = "Ada wrote the first program in 1843. It was for the engine of Babbage."


def qa(question="When?", answers=(("1843", 31),), **more):
    listed = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": "1", "question": question, "answers": listed, **more}


def content(*questions, context=CONTEXT):
    return {"version": "x", "data": [{"title": "t", "paragraphs": [
        {"context": context, "qas": list(questions)}]}]}  # fmt: skip


def write(folder, stems, data):
    folder.mkdir(exist_ok=True, parents=True)
    for stem in stems:
        (folder / f"{stem}.json").write_text(json.dumps(data))


# Files.


@pytest.mark.parametrize(
    ("task", "stems"),
    [
        ("squad", ("train", "dev")),
        ("squad", ("train-v1.1", "dev-v1.1")),
        ("squad_v2", ("train", "dev")),
        ("squad_v2", ("train-v2.0", "dev-v2.0")),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_files_are_read_under_either_name(tmp_path, task, stems, inner):
    write(tmp_path / task if inner else tmp_path, stems, content(qa()))
    data = squad.load_files(task, tmp_path)
    assert data.train == data.evaluation == [Question("When?", CONTEXT, (Answer("1843", 31),))]


def test_impossible_questions_have_no_answer(tmp_path):
    plausible = [{"text": "1843", "answer_start": 31}]
    questions = (
        qa(answers=(), is_impossible=True, plausible_answers=plausible),
        qa(is_impossible=True),
        qa(is_impossible=False),
        qa(answers=()),
    )
    write(tmp_path, ("train", "dev"), content(*questions))
    data = squad.load_files("squad_v2", tmp_path)
    assert [len(question.answers) for question in data.train] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"cannot read .*dev\.json: Expecting property name"),
        ("[]", r"dev\.json must have 'data', a list; got NoneType"),
        ('{"data": [{"paragraphs": {}}]}', r"data\[0\] must have 'paragraphs', a list; got dict"),
        ('{"data": [7]}', r"data\[0\] must have 'paragraphs', a list"),
        ('{"data": []}', "must hold at least one question; it has none"),
        (content(7), r"data\[0\]\.paragraphs\[0\]\.qas\[0\] must have 'question', a str"),
        (content({"question": "?"}), r"qas\[0\] must have 'answers', a list; got NoneType"),
        (content({**qa(), "question": 7}), "must have 'question', a string; got int"),
        (content(qa(), context=None), r"paragraphs\[0\] must have 'context', a string; got None"),
        (content(qa(answers=[("1843", "31")])), r"answers\[0\] must have 'answer_start', a whole"),
        (content(qa(answers=())), r"must have an answer \(or use --task squad_v2\); got none"),
        (content(qa(answers=[("1843", 30)])), "have its text at 30 of the context of 70 characters"
         ", '1843'; got ' 184'"),
        (content(qa(answers=[("1843", 900)])), "'1843'; got ''"),
        (content(qa(answers=[("1843", -39)])), "have its text at -39"),
        (content(qa(answers=[("", 3)])), "have its text at 3"),
    ],
)  # fmt: skip
def test_broken_files_are_refused(tmp_path, text, message):
    write(tmp_path, ("train",), content(qa()))
    (tmp_path / "dev.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(UsageError, match=message):
        squad.load_files("squad", tmp_path)


def test_broken_questions_are_refused_in_v2(tmp_path):
    write(tmp_path, ("train", "dev"), content(7))
    with pytest.raises(UsageError, match=r"qas\[0\] must have 'question', a string; got NoneType"):
        squad.load_files("squad_v2", tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"none of .*train\.json.*train-v2\.0\.json.* found"):
        squad.load_files("squad_v2", tmp_path)


def test_hub_rows_are_read(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = {
        "question": ["When?", "Why?"],
        "context": [CONTEXT] * 2,
        "answers": [{"text": ["1843"], "answer_start": [31]}, {"text": [], "answer_start": []}],
    }
    fake = dict.fromkeys(("train", "validation"), datasets.Dataset.from_dict(rows))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or fake)
    data = squad.load_hub("squad_v2")
    assert asked == [("rajpurkar/squad_v2",)]
    assert data.train[0] == Question("When?", CONTEXT, (Answer("1843", 31),))
    assert data.evaluation[1].answers == ()


def test_unreachable_hub_asks_for_data(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*names):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UsageError, match=r"rajpurkar/squad from the .*SQuAD \.json files with --d"):
        squad.load_hub("squad")


# Metrics: the cases are worked out by hand from the rules of the official scripts.


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Old Tower.", "old tower"),
        ("an apple a day", "apple day"),
        ("another theatre", "another theatre"),
        ("U.S.A.'s", "usas"),
        ("well-known", "wellknown"),
        ("\tthe\n", ""),
        ("«Été»", "«été»"),  # punctuation is ASCII's
    ],
)
def test_answers_are_normalized(text, normal):
    assert squad_metrics.normalize(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("the Denver Broncos!", "Denver Broncos", 1, 1),
        ("Denver", "Denver Broncos", 0, 2 / 3),
        ("in in 1843", "in 1843", 0, 4 / 5),  # a word counts as often as it is in both
        ("1843", "1844", 0, 0),
    ],
)
def test_one_answer_by_hand(prediction, answer, exact, f1):
    assert squad_metrics.exact_match(prediction, answer) == exact
    for task in ("squad", "squad_v2"):
        assert squad_metrics.f1(prediction, answer, task) == pytest.approx(f1)


def test_answers_without_a_word_agree_in_v2_only():
    assert squad_metrics.f1("the", "a", "squad") == 0
    assert squad_metrics.f1("the", "a", "squad_v2") == 1
    assert squad_metrics.f1("", "x", "squad_v2") == 0


def question(*answers):
    return Question("?", "", tuple(Answer(answer, 0) for answer in answers))


def test_the_best_of_several_answers_counts():
    got = squad_metrics.compute(
        "squad", ["Denver", "x"], [question("Broncos", "Denver Broncos", "denver."), question("y")]
    )
    assert got == {"f1": 0.5, "exact_match": 0.5}
    assert list(got) == ["f1", "exact_match"]


def test_no_answer_is_right_where_there_is_none():
    questions = [question("Denver"), question("Denver"), question(), question()]
    got = squad_metrics.compute("squad_v2", ["Denver Broncos", "", "", "Denver"], questions)
    assert got == pytest.approx(
        {
            "f1": (2 / 3 + 0 + 1 + 0) / 4,
            "exact_match": 1 / 4,
            "answerable_f1": 1 / 3,
            "answerable_exact_match": 0,
            "unanswerable_exact_match": 1 / 2,
        }
    )
    only = squad_metrics.compute("squad_v2", [""], [question()])
    assert math.isnan(only["answerable_f1"])


# Windows.


@pytest.fixture(scope="module")
def tokenizer():
    return checkpoint.load_tokenizer(checkpoint.find_model(None), 384)


def settings(**changes):
    return Settings(**{"task": "squad", "max_length": 32, "doc_stride": 8, **changes})


def test_windows_overlap_and_hold_the_answer(tokenizer):
    context = " ".join(f"word{i}" for i in range(40))
    start = context.index("word21")
    asked = Question("which word", context, (Answer("word21 word22", start),))
    cut = list(windows([asked], tokenizer, settings()))
    spans = [window.spans[window.spans[:, 0] >= 0] for window in cut]
    assert len(cut) > 2
    for before, after in itertools.pairwise(spans):
        np.testing.assert_array_equal(before[-8:], after[:8])
    assert spans[0][0].tolist() == [0, 4]
    assert spans[-1][-1, 1] == len(context)
    held = 0
    for window in cut:
        inputs = window.inputs
        assert len(inputs["input_ids"]) == len(window.spans) <= 32
        first, last = inputs["start_positions"], inputs["end_positions"]
        whole = window.spans[:, 0].max() >= start + 13 or window is cut[-1]
        if first != window.null:
            held += 1
            assert context[window.spans[first, 0] : window.spans[last, 1]] == "word21 word22"
        else:
            assert last == window.null == 0
            inside = window.spans[window.spans[:, 0] >= 0]
            assert inside[0, 0] > start or inside[-1, 1] < start + 13 or not whole
    assert held >= 1


def test_long_questions_leave_room_for_the_context(tokenizer):
    asked = Question("  " * 500 + "why " * 200, CONTEXT, (Answer("1843", 31),))
    cut = list(windows([asked], tokenizer, settings()))
    assert all(len(window.inputs["input_ids"]) <= 32 for window in cut)
    ends = [window.spans[window.spans[:, 0] >= 0][-1, 1] for window in cut]
    assert ends[-1] == len(CONTEXT)


def test_no_answer_is_the_first_token(tokenizer):
    (window,) = windows([Question("why", CONTEXT, ())], tokenizer, settings())
    assert (window.inputs["start_positions"], window.inputs["end_positions"]) == (0, 0)
    assert window.inputs["input_ids"][window.null] == tokenizer.cls_token_id


def test_real_answers_are_found_in_their_windows(tokenizer):
    questions = squad.read_questions(real_data("squad", "dev.json"), "squad")[:300]
    found = set()
    for window in windows(questions, tokenizer, Settings(task="squad")):
        asked = questions[window.question]
        first, last = window.inputs["start_positions"], window.inputs["end_positions"]
        if first != window.null:
            text = asked.context[window.spans[first, 0] : window.spans[last, 1]]
            assert asked.answers[0].text in text
            assert len(text) <= len(asked.answers[0].text) + 12  # a token may hold a little more
            found.add(window.question)
    assert len(found) == len(questions)


# Answers.


def window(spans, question=0):
    return Window(question, {}, np.array(spans, np.int32), 0)


# A first token that means no answer, three tokens of "ab cd ef", and one at the end.
SPANS = [(-1, -1), (0, 2), (3, 5), (6, 8), (-1, -1)]


def test_the_best_span_is_of_the_context_and_in_order():
    start = np.array([9.0, 1.0, 2.0, 5.0, 9.0, 9.0])  # the last is padding
    end = np.array([9.0, 3.0, 2.5, 0.0, 9.0, 9.0])
    assert best_span(window(SPANS), start, end, 30) == (5.0, (6, 8))
    end[3] = -1
    assert best_span(window(SPANS), start, end, 30) == (4.5, (3, 5))
    start[3] = -5
    start[1] = 2.4
    assert best_span(window(SPANS), start, end, 30) == (5.4, (0, 2))


def test_spans_are_no_longer_than_allowed():
    start, end = np.array([0, 5.0, 0, 0, 0]), np.array([0, 0.0, 0, 5, 0])
    assert best_span(window(SPANS), start, end, 3) == (10.0, (0, 8))
    assert best_span(window(SPANS), start, end, 2)[1] in [(0, 2), (0, 5), (6, 8), (3, 8)]
    assert best_span(window(SPANS), start, end, 2)[0] == 5


def test_a_window_without_context_has_no_span():
    score, _ = best_span(window([(-1, -1)] * 3), np.zeros(3), np.zeros(3), 30)
    assert score == -np.inf


@pytest.mark.parametrize(
    ("threshold", "answer"), [(0.0, "cd"), (-0.6, "cd"), (-1.1, ""), (-9.0, "")]
)
def test_the_null_score_decides(threshold, answer):
    asked = [Question("?", "ab cd ef", ())]
    # Best spans: "ab" with 3 and, in the other window, "cd" with 4; null scores 8 and 3.
    cut = [window(SPANS), window(SPANS)]
    starts = np.array([[4, 2.0, 0, 0, 0], [2, 0.0, 2, 0, 0]])
    ends = np.array([[4, 1.0, 0, 0, 0], [1, 0.0, 2, 0, 0]])
    v2 = settings(task="squad_v2", null_threshold=threshold)
    assert predict(asked, cut, starts, ends, v2) == [answer]
    assert predict(asked, cut, starts, ends, settings()) == ["cd"]


def test_windows_belong_to_their_questions():
    asked = [Question("?", "ab cd ef", ()), Question("?", "AB CD EF", ())]
    cut = [window(SPANS, 1), window(SPANS, 0)]
    scores = np.array([[0, 0, 5.0, 0, 0], [0, 5.0, 0, 0, 0]])
    assert predict(asked, cut, scores, scores, settings()) == ["ab", "CD"]


# Whole runs.


def facts():
    """Questions about short made-up contexts, each second of which has no answer."""
    people = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn")
    for i, name in enumerate(people):
        context = f"{name} was born in {1800 + 7 * i} and moved to town {i}."
        yield context, f"When was {name} born?", str(1800 + 7 * i)
        yield context, f"Who is the sister of {name}?", None


def write_facts(folder, task):
    paragraphs = [
        {"context": context, "qas": [qa(asked, [(a, context.index(a))] if a else [])]}
        for context, asked, a in facts()
        if a or task == "squad_v2"
    ]
    write(folder, ("train", "dev"), {"data": [{"paragraphs": paragraphs}]})


@pytest.mark.parametrize("task", ["squad", "squad_v2"])
def test_squad_run_learns_its_answers(tmp_path, tiny_bert, task):
    write_facts(tmp_path / "data", task)
    result = run(
        Settings(
            model=tiny_bert, task=task, data=tmp_path / "data", arms=("fp32", "int8-split"),
            max_length=32, batch_size=6, lr=5e-3, epochs=1000, max_steps=60, threads=1,
            output=tmp_path / "out",
        )
    )  # fmt: skip
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for arm in made["arms"].values():
        assert list(arm["metrics"]) == list(squad_metrics.METRIC_NAMES[task])
        assert arm["metrics"]["exact_match"] > 0.8
        assert arm["examples_per_second"] > 0
    assert made["arms"]["int8-split"]["loss"] != made["arms"]["fp32"]["loss"]
    assert made["arms"]["int8-split"]["conversion"]["converted"] == 7
    data = made["environment"]["data"]
    assert (data["unit"], data["metric"]) == ("windows", "f1")
    assert data["eval_questions"] == (12 if task == "squad_v2" else 6)
    assert result.unit == "windows"
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "model")
    assert not any("int8tile" in type(module).__module__ for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoders_answer_questions_too(tmp_path, tiny_decoder, kind):
    """Llama's checkpoints name the body otherwise than its model for question answering does."""
    write_facts(tmp_path / "data", "squad")
    common = {"model": tiny_decoder(kind), "task": "squad", "data": tmp_path / "data"}
    lengths = {"max_length": 48, "batch_size": 6, "max_steps": 2, "threads": 1}
    run(Settings(**common, **lengths, arms=("bf16", "paper-split"), output=tmp_path / "out"))
    body = AutoModel.from_pretrained(common["model"]).get_input_embeddings().weight
    trained = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "model")
    assert (trained.get_input_embeddings().weight - body).abs().max() < 0.01
