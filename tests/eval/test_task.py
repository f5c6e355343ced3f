"""Benchmarks as data: prompts word for word, and answerers that are known score exactly what they must."""

import math
import random

import pytest

from modeling_video_ma2mba.eval.intervals import wilson_interval
from modeling_video_ma2mba.eval.parsers import OFFICIAL
from modeling_video_ma2mba.eval.samples import Output, Score
from modeling_video_ma2mba.eval.summary import metric_figures
from modeling_video_ma2mba.eval.task import OPEN_PARSERS, load_task, task_names
from modeling_video_ma2mba.eval.task_readers import QUESTIONS
from modeling_video_ma2mba.train.data_report import DataReport
from tests.eval.fixtures import SAMPLES, make_benchmark, say

NAMES = tuple(SAMPLES)
CHOICES = tuple(name for name in NAMES if name not in ("activitynet-qa", "videochatgpt"))


def figures(task, samples, outputs):
    """The value of every metric, official and strict, None without one."""
    rows = []
    for sample, output in zip(samples, outputs):
        score = task.score(sample, output)
        row = {"cluster": sample.cluster, "groups": sample.groups, "error": output.error}
        rows.append(row | {"official": score.official, "strict": score.strict})
    found = {name: metric_figures(rows, rule) for name, rule in task.metrics.items()}
    return {
        name: tuple(kinds[kind] and kinds[kind]["value"] for kind in ("official", "strict"))
        for name, kinds in found.items()
    }


def test_the_tasks_are_these():
    assert task_names() == sorted(NAMES)
    with pytest.raises(ValueError, match="unknown task 'x'; known are activitynet-qa"):
        load_task("x")


@pytest.mark.parametrize("name", NAMES)
def test_data_files_hold_together(name):
    task = load_task(name)
    assert task.reader in QUESTIONS and task.parser in (*OFFICIAL, *OPEN_PARSERS)
    assert task.version >= 1 and task.licence and task.title
    assert task.hub is None or set(task.hub) == {"dataset", "split", "revision"}
    assert (task.hub is None) == (task.cache_folder is None)
    assert bool(task.judge) == (task.parser in OPEN_PARSERS)
    assert set(task.judge) <= {part.name for part in task.parts}
    for rule in task.metrics.values():
        assert {*rule.get("where", {}), *([rule["mean_over"]] if "mean_over" in rule else [])} <= {*task.groups}
    words = {"question": "Q", "options": "O", "subtitles": "S"}
    assert "Q" in task.prompt.format(**words) and ("{options}" in task.prompt) == bool(task.option)
    assert (task.subtitles is not None) == (name in ("video-mme", "longvideobench"))


def test_mvbench_has_its_twenty_tasks():
    parts = {part.name: part for part in load_task("mvbench").parts}
    assert len(parts) == 20
    bounded = {
        "action_sequence",
        "action_prediction",
        "object_interaction",
        "action_localization",
        "episodic_reasoning",
    }
    assert {name for name, part in parts.items() if part.bounds} == bounded
    assert {name for name, part in parts.items() if part.frame_rate} == {"episodic_reasoning"}
    assert all(part.cut for part in parts.values() if part.bounds)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_read(benchmarks, name):
    task = load_task(name)
    report = DataReport()
    samples = task.read(benchmarks[name], report=report)
    assert len(samples) == SAMPLES[name] == len({sample.id for sample in samples})
    assert not report.left_out
    assert not report.notes
    for sample in samples:
        assert sample.view.video.exists() and (benchmarks[name] / sample.cluster).samefile(sample.view.video)
        assert (sample.view.fps, sample.view.num_frames, sample.view.sampling) == (1.0, None, "model")
        assert set(task.groups) <= set(sample.groups)
        assert all(option in sample.prompt for option in sample.options)
        assert sample.question.lower() in sample.prompt.lower()
        if sample.options:
            assert 0 <= sample.answer < len(sample.options)
    # Questions about one video have one view: it is watched once.
    assert len({sample.view for sample in samples}) == len({sample.cluster for sample in samples})
    assert [sample.id for sample in task.read(benchmarks[name], limit=2)] == [sample.id for sample in samples[:2]]
    assert task.read(benchmarks[name], num_frames=8)[0].view.num_frames == 8
    assert task.read(benchmarks[name], num_frames=8)[0].view.fps is None
    files = task.annotation_files(benchmarks[name])
    assert len(files) == len(task.parts) and all(file.is_file() for file in files)


def test_making_is_repeatable(benchmarks, tmp_path):
    again = make_benchmark("nextqa", tmp_path / "again")
    for file in benchmarks["nextqa"].rglob("*.*"):
        assert file.read_bytes() == (again / file.relative_to(benchmarks["nextqa"])).read_bytes()


LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
# fmt: off
PROMPTS = {
    "video-mme": [
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.",
        "What is on table 0?", "A. A lamp.", "B. A map.", "C. A cup.", "D. A knife.", "The best answer is:",
    ],
    "longvideobench": [
        "Question: When the subtitle mentions a lamp, what is on table 0?",
        "A. a lamp", "B. a map", "C. a cup", "D. a knife", LETTER_REQUEST,
    ],
    "mvbench": [
        "Question: What is on table 0?", "Options:", "(A) A lamp.", "(B) A map.", "(C) A cup.",
        "Only give the best option.",
    ],
    "mlvu": [
        "Question: What is on table 0?", "Options:", "(A) A lamp.", "(B) A map.", "(C) A cup.", "(D) A knife.",
        "Only give the best option.",
    ],
    "activitynet-qa": ["Is there a tv on table 0? Answer the question using a single word or phrase."],
    "videochatgpt": ["What happens first?"],
    "nextqa": [
        "why did the girl stop at table 0", "A. to see a lamp", "B. to see a map", "C. to see a cup",
        "D. to see a knife", "E. to see a rope", LETTER_REQUEST,
    ],
    "perceptiontest": ["Is the camera moving?", "A. no", "B. yes", "C. I don't know", LETTER_REQUEST],
    "egoschema": [
        "What does C do?", "A. C takes the lamp. Then C rests.", "B. C takes the map. Then C rests.",
        "C. C takes the cup. Then C rests.", "D. C takes the knife. Then C rests.",
        "E. C takes the rope. Then C rests.", LETTER_REQUEST,
    ],
}
# fmt: on


@pytest.mark.parametrize("name", NAMES)
def test_prompts_word_for_word(benchmarks, name):
    """A change here is a change of the benchmark: raise `version` in its file."""
    sample = load_task(name).read(benchmarks[name], limit=1)[0]
    assert sample.prompt == "\n".join(PROMPTS[name])
    assert sample.prefix == {"mvbench": "Best option:(", "mlvu": "Best Option: ("}.get(name, "")
    assert (sample.view.system or "").startswith({"mvbench": "Carefully", "mlvu": "Carefully"}.get(name, ""))


@pytest.mark.parametrize("name", CHOICES)
def test_a_perfect_answerer_has_everything_right(benchmarks, name):
    task = load_task(name)
    samples = task.read(benchmarks[name])
    likely = [
        Output(log_likelihoods=tuple(-float(i != sample.answer) for i in range(len(sample.options))))
        for sample in samples
    ]
    for outputs in ([say(sample, sample.answer) for sample in samples], likely):
        found = figures(task, samples, outputs)
        assert set(found) == set(task.metrics) and set(found.values()) == {(1.0, 1.0)}


@pytest.mark.parametrize("name", CHOICES)
def test_a_constant_answerer_has_the_share_of_its_letter(benchmarks, name):
    task = load_task(name)
    samples = task.read(benchmarks[name])
    found = figures(task, samples, [say(sample, 0) for sample in samples])["accuracy"]
    share = sum(sample.answer == 0 for sample in samples) / len(samples)
    # "A. A lamp." is A by every rule, that of MMMU included.
    assert found == pytest.approx((share, share))


@pytest.mark.parametrize("name", CHOICES)
def test_a_random_answerer_has_chance_within_its_interval(benchmarks, name):
    task = load_task(name)
    samples = task.read(benchmarks[name])
    draws = random.Random(0)
    rounds = math.ceil(3000 / len(samples))
    right = {"official": 0.0, "strict": 0.0}
    for _ in range(rounds):
        for sample in samples:
            score = task.score(sample, say(sample, draws.randrange(len(sample.options))))
            right = {kind: right[kind] + getattr(score, kind) for kind in right}
    for kind in right:
        low, high = wilson_interval(int(right[kind]), rounds * len(samples), confidence=0.999)
        # Which option is right is fixed and each is drawn as often, so chance is the mean of 1 / N.
        assert low <= sum(1 / len(sample.options) for sample in samples) / len(samples) <= high


@pytest.mark.parametrize("name", CHOICES)
def test_an_answerer_that_says_nothing_is_never_right_strictly(benchmarks, name):
    task = load_task(name)
    samples = task.read(benchmarks[name])
    official, strict = figures(task, samples, [Output(text="")] * len(samples))["accuracy"]
    assert strict == 0.0
    # The benchmarks' own rules: left out, right because "(" is in "(a)", wrong, or at random.
    expected = {"video-mme": None, "mvbench": 1.0, "mlvu": 0.0, "perceptiontest": 0.0}
    if name in expected:
        assert official == expected[name]
    else:
        assert all(task.score(sample, Output(text="")).details["guessed"] for sample in samples)


def test_scores_of_errors_open_answers_and_likelihoods(benchmarks):
    task = load_task("activitynet-qa")
    sample = task.read(benchmarks["activitynet-qa"], limit=1)[0]
    assert sample.answer == "no"
    assert task.score(sample, Output(text=" No. ")) == Score(parsed="no", official=None, strict=1.0)
    assert task.score(sample, Output(text="")) == Score(parsed=None, official=None, strict=0.0)
    failed = task.score(sample, Output(error="cut off"))
    assert failed == Score(parsed=None, official=None, strict=None, details={"error": "cut off"})
    with pytest.raises(ValueError, match="needs text, log_likelihoods or an error"):
        task.score(sample, Output())
    open_task = load_task("videochatgpt")
    sample = open_task.read(benchmarks["videochatgpt"], limit=1)[0]
    assert open_task.score(sample, Output(text="She runs. ")) == Score(parsed="She runs.", official=None, strict=None)

    task = load_task("mlvu")
    sample = task.read(benchmarks["mlvu"], limit=1)[0]
    assert sample.answer == 0
    assert task.score(sample, Output(log_likelihoods=(-1.0, -2.0, -3.0, -4.0))).strict == 1.0
    # Equal likelihoods name no option.
    tied = task.score(sample, Output(log_likelihoods=(-1.0, -1.0, -3.0, -4.0)))
    assert (tied.parsed, tied.official, tied.strict) == (None, 0.0, 0.0)
    with pytest.raises(ValueError, match="2 likelihoods for 4 options"):
        task.score(sample, Output(log_likelihoods=(-1.0, -2.0)))


def test_m_avg_is_the_mean_of_the_tasks_and_errors_count_nowhere(benchmarks):
    task = load_task("mlvu")
    samples = [sample for sample in task.read(benchmarks["mlvu"]) if sample.groups["task"] in ("plotQA", "ego")]
    samples = samples[:4] + samples[4:5]  # four of plotQA, one of ego
    wrong = [say(sample, (sample.answer + 1) % 4) for sample in samples]
    outputs = [wrong[0], *wrong[1:4], say(samples[4], samples[4].answer)]
    found = figures(task, samples, outputs)
    assert found == {"M-Avg": (0.5, 0.5), "accuracy": (0.2, 0.2)}
    outputs[0] = Output(error="damaged")
    assert figures(task, samples, outputs) == {"M-Avg": (0.5, 0.5), "accuracy": (0.25, 0.25)}


def test_figures_of_nextqa_by_class(benchmarks):
    task = load_task("nextqa")
    samples = task.read(benchmarks["nextqa"])
    assert [sample.groups["type"] for sample in samples[:8]] == ["CW", "CH", "TN", "TC", "TN", "DC", "DL", "DO"]
    outputs = [say(s, s.answer if s.groups["class"] == "temporal" else (s.answer + 1) % 5) for s in samples]
    found = figures(task, samples, outputs)
    assert {name: strict for name, (_, strict) in found.items()} == {
        "accuracy": 6 / 16, "Acc_C": 0.0, "Acc_T": 1.0, "Acc_D": 0.0,
    }  # fmt: skip


def test_figures_of_activitynet_by_type(benchmarks):
    task = load_task("activitynet-qa")
    samples = task.read(benchmarks["activitynet-qa"])
    assert [s.groups["type"] for s in samples[:4]] == ["motion", "spatial relation", "temporal relation", "yes/no"]
    outputs = [Output(text=s.answer if s.groups["class"] == "free" else "maybe") for s in samples]
    found = figures(task, samples, outputs)
    # Types 0 to 8 and 0 again: of 10 questions 2 are motion, 1 is spatial, 1 is temporal, 6 are free.
    assert found == {
        "accuracy": (None, 0.6), "motion": (None, 0.0), "spatial": (None, 0.0), "temporal": (None, 0.0),
        "free": (None, 1.0),
    }  # fmt: skip


def test_what_is_missing_is_told_at_once(benchmark_copy, monkeypatch, tmp_path):
    folder = benchmark_copy("mvbench")
    for name in ("action_sequence", "state_change"):
        (folder / "json" / f"{name}.json").unlink()
    with pytest.raises(ValueError, match=r"2 of 20 annotation files .*sequence\.json, json/state_change\.json"):
        load_task("mvbench").read(folder)
    folder = benchmark_copy("video-mme")
    next((folder / "data").iterdir()).unlink()
    with pytest.raises(ValueError) as error:
        load_task("video-mme").read(folder)
    for words in ("3 of 6 rows", "--allow-missing", f"{folder}/{{data,videos}}/NAME{{.mp4,", "in any folder below"):
        assert words in str(error.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"data set lmms-lab/Video-MME of the Hub.*--data video-mme=FOLDER"):
        load_task("video-mme").read()
