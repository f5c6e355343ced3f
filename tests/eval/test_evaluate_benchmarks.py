"""The whole command on small benchmarks in their published layout: a model that knows nothing, one that knows all."""

import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import _video_ma2mba_cli as console
from modeling_video_ma2mba.eval import cli, evaluate_benchmarks, ma2mba_answerer
from modeling_video_ma2mba.eval.compare import compare, comparison_text
from modeling_video_ma2mba.eval.figures import draw
from modeling_video_ma2mba.eval.judged import judged_figures
from modeling_video_ma2mba.eval.local_judges import OfflineJudge
from modeling_video_ma2mba.eval.model_index import metadata, model_index
from modeling_video_ma2mba.eval.parsers import LETTERS
from modeling_video_ma2mba.eval.report import frames_text, markdown
from modeling_video_ma2mba.eval.results import read_result
from modeling_video_ma2mba.eval.run import read_questions
from modeling_video_ma2mba.eval.samples import Output
from modeling_video_ma2mba.eval.view_frames import view_times
from tests.eval.byte_model import save
from tests.eval.fixtures import make_benchmark
from tests.eval.judge_server import said

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Video-MME with three videos of three questions, the last one broken; ActivityNet-QA; VideoChatGPT."""
    folder = tmp_path_factory.mktemp("data")
    for name, videos in (("video-mme", 3), ("activitynet-qa", 1), ("videochatgpt", 1)):
        make_benchmark(name, folder / name, videos=videos)
    broken = sorted((folder / "video-mme" / "data").iterdir())[-1]
    broken.write_bytes(broken.read_bytes()[:600])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes") / "model"
    save(folder)
    return folder


def words(model, data, output, tasks="video-mme", *more):
    given = [f"--data={name}={data / name}" for name in tasks.split(",")]
    return ["--model", str(model), "--tasks", tasks, *given, "--output", str(output), "--device", "cpu", *more]


def without_time(result):
    return {name: value for name, value in result.items() if name != "date"}


class Perfect:
    """Says the right letter, or the one after it, and sees the frames of no video but their times."""

    def __init__(self, wrong=()):
        self.wrong = wrong

    def watch(self, view, on_frame):
        return view_times(view)

    def answer(self, seen, samples):
        shifts = (one.id in self.wrong for one in samples)
        said = (
            LETTERS[(one.answer + shift) % 4] if one.options else one.answer for one, shift in zip(samples, shifts)
        )
        return [Output(text=text, times=seen, rendered="?") for text in said]

    def score_options(self, seen, samples):
        raise AssertionError("no likelihoods were asked for")

    def describe(self):
        return {"name": f"perfect but {len(self.wrong)}"}


@pytest.fixture
def perfect(monkeypatch):
    """`perfect(wrong ids)`: the command meets such a model, and draws nothing, which takes longest."""
    monkeypatch.setattr(evaluate_benchmarks, "draw", lambda *_: [])
    return lambda *wrong: monkeypatch.setattr(evaluate_benchmarks, "load_answerer", lambda *_: Perfect(wrong))


@pytest.fixture(scope="module")
def run(model, data, tmp_path_factory):
    """A run of the random model; how often it watched."""
    output, watched = tmp_path_factory.mktemp("run"), []
    watch = ma2mba_answerer.Ma2mbaAnswerer.watch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ma2mba_answerer.Ma2mbaAnswerer, "watch", lambda self, view, _: watched.append(view) or watch(self, view)
        )
        assert cli.main(words(model, data, output)) == 0
    return output / "model-1fps", watched


def test_a_run(run, data, model):
    folder, watched = run
    assert len(watched) == 3  # for nine questions
    result = read_result(folder)
    task = result["tasks"]["video-mme"]
    summary = task["summary"]
    assert (summary["samples"], summary["videos"], summary["errors"]) == (9, 3, 3)
    assert summary["chance"] == 0.25
    (overall,) = summary["metrics"].values()
    assert overall["strict"]["samples"] == 6 and overall["strict"]["videos"] == 2
    errors = [row for row in task["samples"] if row["error"] is not None]
    assert len(errors) == 3 and all(row["official"] is row["strict"] is None and row["text"] is None for row in errors)
    good = next(row for row in task["samples"] if row["error"] is None)
    assert good["times"] == [0.0, 1.0, 2.0, 3.0] and good["text"] is not None
    assert good["prompt"] in good["rendered"] and "<|user|><video>" in good["rendered"]
    assert good["sampling"]["fps"] == 1.0 and good["groups"]["duration"] == "short"
    settings = result["settings"]
    assert settings["model"]["name"] == str(model) and settings["tasks"]["video-mme"]["samples"] == 9
    assert all(re.fullmatch("[0-9a-f]{64}", hash) for hash in settings["tasks"]["video-mme"]["annotations"].values())
    assert {"python", "torch", "transformers", "av"} <= set(result["versions"])
    assert result["statistics"]["seed"] == 0
    text = (folder / "results.md").read_text()
    assert "9 questions about 3 videos, 3 could not be asked (errors)" in text
    assert "cannot read video" in text and "003-1, 003-2, 003-3" in text
    assert re.search(r"\| accuracy \| 6 \| .* \| 33.1 \| 40.3 \| 45.2 \|", text)
    assert re.search(r"\| duration: short \| 3 \| .* \| 57.6 \|", text)


def test_figures(run, tmp_path):
    pytest.importorskip("matplotlib")
    assert [path.name for path in draw(read_result(run[0]), tmp_path)] == ["video-mme.png"]
    assert (tmp_path / "video-mme.png").stat().st_size > 5000


def test_two_processes_give_the_same(run, model, data, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command = [*launch, "--standalone", str(ROOT / "eval" / "cli.py"), *words(model, data, tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "model-1fps"
    assert len(list(folder.glob("journal-*.jsonl"))) == 2
    assert without_time(read_result(folder)) == without_time(read_result(run[0]))
    assert done.stdout.count("# ") == (run[0] / "results.md").read_text().count("# ")  # one report, not two


def test_a_killed_command_goes_on(run, model, data, tmp_path, capsys):
    """SIGKILL once the first view is in the journal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "eval" / "cli.py"), *words(model, data, tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "model-1fps" / "journal-0.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cli.main(words(model, data, tmp_path)) == 0
    assert without_time(read_result(tmp_path / "model-1fps")) == without_time(read_result(run[0]))
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    answered = [one["id"] for row in lines if not row["unreadable"] for one in row["answers"]]
    assert sorted(answered) == [f"{video:03}-{number}" for video in (1, 2) for number in (1, 2, 3)]
    capsys.readouterr()
    assert cli.main([*words(model, data, tmp_path), "--limit", "2"]) == 2
    assert "limit was None, is 2" in capsys.readouterr().err


def test_a_perfect_model(perfect, model, data, tmp_path, capsys):
    perfect()
    assert cli.main(words(model, data, tmp_path, "video-mme,activitynet-qa")) == 0
    result = read_result(tmp_path / "model-1fps")
    overall = result["tasks"]["video-mme"]["summary"]["metrics"]["accuracy"]
    assert overall["official"]["value"] == overall["strict"]["value"] == 1.0
    assert overall["strict"]["low"] == pytest.approx(0.3424, abs=1e-4)  # Wilson's, 2 of 2
    open_answers = result["tasks"]["activitynet-qa"]["summary"]
    assert open_answers["metrics"]["accuracy"]["strict"]["value"] == 1.0 and open_answers["chance"] is None
    assert "100.0 [34.2, 100.0]" in capsys.readouterr().out


FIVE = ("video-mme", "longvideobench", "mvbench", "activitynet-qa", "videochatgpt")


def test_all_five_benchmarks(model, tmp_path, monkeypatch, serve, capsys):
    """A model that knows nothing, from the published folders to the report, with a judge behind HTTP."""
    monkeypatch.setattr(evaluate_benchmarks, "draw", lambda *_: [])
    for name in FIVE:
        make_benchmark(name, tmp_path / name, videos=1)
    before = []
    server = serve(lambda number, body, headers: before.append(number) or said("{'pred': 'no', 'score': 1}"))
    watch = ma2mba_answerer.Ma2mbaAnswerer.watch
    watched = []
    monkeypatch.setattr(
        ma2mba_answerer.Ma2mbaAnswerer,
        "watch",
        lambda self, view, _: watched.append((view, capsys.readouterr().err)) or watch(self, view),
    )
    arguments = words(model, tmp_path, tmp_path / "out", ",".join(FIVE), "--frames", "2", "--likelihood")
    assert cli.main([*arguments, "--judge", "gpt-3.5-turbo-0125", "--judge-url", server.url]) == 0
    # What it will cost is said before the first video: 10 + 2 x 3 + 2 + 1 answers.
    assert "endpoint gpt-3.5-turbo-0125, for each run: 19 requests (0 more are on disk), about" in watched[0][1]
    assert "at most about $0.0" in watched[0][1] and len(before) == 19
    tasks = read_result(tmp_path / "out" / "model-2")["tasks"]
    counts = {name: (task["summary"]["samples"], task["summary"]["videos"]) for name, task in tasks.items()}
    # MVBench: one video for each of twenty tasks; each watched once, whatever is asked about it.
    assert counts == {
        "video-mme": (3, 1), "longvideobench": (2, 1), "mvbench": (40, 20), "activitynet-qa": (10, 1),
        "videochatgpt": (6, 1),
    }  # fmt: skip
    assert len(watched) == 24 and not any(task["summary"]["errors"] for task in tasks.values())
    assert all(len(row["times"]) == 2 for task in tasks.values() for row in task["samples"])
    assert len(tasks["mvbench"]["summary"]["groups"]["task"]) == 20
    judged = tasks["activitynet-qa"]["judged"]["figures"]
    assert judged["judged accuracy"]["official"]["value"] == 0.0 and judged["judged score"]["strict"]["value"] == 1.0
    report = (tmp_path / "out" / "model-2" / "results.md").read_text()
    for title, paper in (
        ("Video-MME", "33.1 | 40.3 | 45.2"),
        ("LongVideoBench", "34 | 38 | 43"),
        ("MVBench", "41.1 | 44.4 | 48.3"),
        ("ActivityNet-QA", "43.8 | 50 | 51.7"),
        ("VideoChatGPT", "2.69 | 2.76 | 3.03"),
    ):
        section = next(part for part in report.split("\n## ") if part.startswith(title))
        assert f"| {paper} |" in section, title
    # Once more: nobody is watched, and the judge is not paid again.
    assert cli.main([*arguments, "--judge", "gpt-3.5-turbo-0125", "--judge-url", server.url]) == 0
    assert len(watched) == 24 and len(before) == 19


def test_a_judge_with_nothing_to_judge(perfect, model, data, tmp_path, capsys):
    perfect()
    assert cli.main([*words(model, data, tmp_path), "--judge", "m", "--judge-url", "http://localhost:1/v1"]) == 2
    assert "--judge: no task here has open answers" in capsys.readouterr().err


def test_half_a_pair_is_told_before_the_first_video(perfect, model, data, tmp_path, monkeypatch, capsys):
    """VideoChatGPT's consistency asks in pairs, and --limit may cut one in two."""
    perfect()
    monkeypatch.setattr(Perfect, "watch", lambda *_: pytest.fail("a video was watched"))
    arguments = words(model, data, tmp_path, "videochatgpt", "--limit", "5", "--judge", "m")
    assert cli.main([*arguments, "--judge-url", "http://localhost:1/v1"]) == 2
    assert "a limit may have cut one off" in capsys.readouterr().err


def test_a_grid_of_frames(perfect, model, data, tmp_path, capsys):
    perfect("001-1")
    assert cli.main(words(model, data, tmp_path, "video-mme", "--frames", "2,3,0.5fps")) == 0
    for name, frames in (("2", 2), ("3", 3), ("0.5fps", 2)):
        rows = read_result(tmp_path / f"model-{name}")["tasks"]["video-mme"]["samples"]
        assert {len(row["times"]) for row in rows if row["error"] is None} == {frames}
    table = (tmp_path / "comparison.md").read_text()
    ours = [line for line in table.splitlines() if line.startswith("| perfect but 1 |")]
    ways = ["2 frames", "3 frames", "0.5 frames a second"]
    assert [line.split(" | ")[1] for line in ours] == [way for way in ways for _ in range(2)]
    assert [line.split(" | ")[3] for line in ours] == ["official", "strict"] * 3
    assert all(line.split(" | ")[2] == "6 of 2,700 questions" for line in ours)
    assert len([line for line in table.splitlines() if line.startswith("| paper, 3.1b,")]) == 10
    assert (
        "trained with 1 frame a second | 1 frame a second | 2,700 questions | official | 35.4 | 42.7 | 57.6 | 45.2 |"
        in table
    )
    assert table in (out := capsys.readouterr().out)
    assert ("frames.png" in out) == (tmp_path / "frames.png").is_file() == evaluate_benchmarks.HAS_MATPLOTLIB


def test_comparing_two_runs(perfect, model, data, tmp_path, capsys):
    for name, wrong, more in (
        ("a", ["001-1", "001-2"], []),
        ("b", ["002-3"], ["--frames", "2"]),
        ("limited", [], ["--limit", "4"]),
        ("subtitles", [], ["--subtitles"]),
    ):
        perfect(*wrong)
        assert cli.main(words(model, data, tmp_path / name, "video-mme", *more)) == 0
    perfect()
    assert cli.main(words(model, data, tmp_path / "other", "activitynet-qa")) == 0
    folders = {path.name: next(path.glob("model-*")) for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert cli.main(["compare", str(folders["a"]), str(folders["b"])]) == 0
    text = capsys.readouterr().out
    assert "num_frames: None in A, 2 in B" in text
    # Right are 4 and 5 of 6. By video: 2 - 1 = +1; exchanging the two runs in either video gives 3, 1, 1, 3 of 6.
    compared = compare(read_result(folders["a"]), read_result(folders["b"]))
    one = compared["tasks"]["video-mme"]["strict"]
    assert (one["first"], one["second"]) == pytest.approx((4 / 6, 5 / 6))
    assert one["difference"] == pytest.approx(1 / 6) and one["p_value"] == 1.0
    assert (one["samples"], one["videos"], one["left_out"]) == (6, 2, 3)
    assert "| video-mme | strict | 6 of 2 videos | 66.7 | 83.3 | +16.7 [-33.3, +66.7] | 1 | 3 |" in comparison_text(
        compared
    )
    for other, message in (
        ("limited", "5 samples are in the first run only"),
        ("subtitles", "prompt is .* in the first run and"),
        ("other", "share no task"),
    ):
        assert cli.main(["compare", str(folders["a"]), str(folders[other])]) == 2
        assert re.search(message, capsys.readouterr().err)


def test_likelihood_and_text_are_not_compared(run, model, data, tmp_path, capsys):
    assert cli.main(words(model, data, tmp_path, "video-mme", "--likelihood")) == 0
    result = read_result(tmp_path / "model-1fps")
    rows = [row for row in result["tasks"]["video-mme"]["samples"] if row["error"] is None]
    assert all(len(row["log_likelihoods"]) == 4 and row["text"] is None for row in rows)
    assert sum(result["tasks"]["video-mme"]["summary"]["letters"].values()) == 6
    with pytest.raises(ValueError, match="likelihood of options"):
        compare(read_result(run[0]), result)


def test_a_judge_scores_open_answers(perfect, model, data, tmp_path, monkeypatch, capsys):
    perfect()
    monkeypatch.setattr(evaluate_benchmarks, "_judge", lambda *_: OfflineJudge())
    arguments = words(model, data, tmp_path, "activitynet-qa,videochatgpt", "--judge", "any")
    assert cli.main(arguments) == 0
    tasks = read_result(tmp_path / "model-1fps")["tasks"]
    assert tasks["activitynet-qa"]["judged"]["figures"]["judged accuracy"]["official"]["value"] == 1.0
    assert tasks["activitynet-qa"]["judged"]["figures"]["judged score"]["official"]["value"] == 5.0
    figures = tasks["videochatgpt"]["judged"]["figures"]
    assert set(figures) == {
        "vcg-correctness", "vcg-detail", "vcg-context", "vcg-temporal", "vcg-consistency", "judged score",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "Judge: " in out and "| judged score | 5.00" in out and "| 3.03 |" in out
    # An answer about something else.
    questions = read_questions(["activitynet-qa"], {"activitynet-qa": data / "activitynet-qa"}, fps=1.0)[0]
    outputs = [Output(text="zzz")] * len(questions.samples)
    judged = judged_figures(OfflineJudge(), questions.task, questions.samples, outputs)
    assert judged["figures"]["judged accuracy"]["official"]["value"] == 0.0


def test_the_metadata_of_a_model_card(perfect, model, data, tmp_path, capsys):
    perfect("001-1")
    assert cli.main(words(model, data, tmp_path)) == 0
    folder = tmp_path / "model-1fps"
    capsys.readouterr()
    assert cli.main(["card", str(folder), "--name", "mine"]) == 0
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    text = capsys.readouterr().out
    assert text == metadata(read_result(folder), "mine")
    index = model_index(read_result(folder), "mine")
    name, (entry,) = model_index_to_eval_results(index)
    assert (name, entry.dataset_type, entry.metric_type, entry.metric_value) == (
        "mine", "lmms-lab/Video-MME", "accuracy", 83.33,
    )  # fmt: skip
    assert entry.metric_args["errors"] == 3 and entry.dataset_split == "test"
    assert ModelCardData(model_name="mine", eval_results=[entry]).to_dict()["model-index"][0]["name"] == "mine"
    limited = {**read_result(folder)}
    limited["settings"] = {**limited["settings"], "limit": 4}
    with pytest.raises(ValueError, match="without --limit"):
        model_index(limited, "mine")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--tasks", "video-mme,nothing"], "unknown task 'nothing'"),
        (["--data", "mvbench=."], "--data for mvbench"),
        (["--model", "./nowhere"], "no model folder"),
        (["--limit", "0"], "limit=0"),
        (["--judge-url", "http://localhost:1/v1"], "--judge-url and --judge-max-dollars need --judge"),
        (["--frames", "0"], "num_frames=0"),
        (["--frames", "99999999999"], "a number of frames is at most 10,000,000"),
        (["--device", "foo"], "device='foo': this PyTorch has cpu"),
        (["--judge", "local:/nope"], "there is no model folder /nope"),
        (["--judge", "local:/nope", "--judge-max-dollars", "1"], "leave --judge-url and --judge-max-dollars out"),
        (["--judge", "m", "--judge-url", "localhost:8000/v1"], "it begins neither with http:// nor with https://"),
        (["--judge", "m", "--judge-url", "http://localhost:port/v1"], "it cannot be read (Port could not be cast"),
        (["--judge", "m", "--judge-max-dollars", "nan"], "must be 0 or more"),
        (["--output", __file__], "is a file; give a folder"),
    ],
)
def test_bad_input_is_one_line(model, data, tmp_path, capsys, more, message):
    assert cli.main([*words(model, data, tmp_path), *more]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("video-ma2mba: error: ") and message in lines[-1]


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "--model, --tasks, --output"),
        (["--frames", "fast"], "must be like 1fps"),
        (["--data", "video-mme"], "must be NAME=FOLDER"),
        (["--frames", ","], "give 1fps"),
    ],
)
def test_bad_options(capsys, given, message):
    with pytest.raises(SystemExit):
        cli.main(given)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("what", ["no file", "no JSON", "another format", "no samples", "a sample", "types"])
def test_damaged_results(run, tmp_path, capsys, what):
    result = json.loads((run[0] / "results.json").read_text())
    if what == "another format":
        result["format"] = "other"
    elif what == "no samples":
        result["tasks"]["video-mme"].pop("samples")
    elif what == "a sample":
        result["tasks"]["video-mme"]["samples"][1] = 5
    elif what == "types":
        result["tasks"]["video-mme"]["samples"][1]["official"] = "1"
    if what != "no file":
        (tmp_path / "results.json").write_text("{" if what == "no JSON" else json.dumps(result))
    assert cli.main(["compare", str(tmp_path), str(run[0])]) == 2
    assert "results.json" in capsys.readouterr().err


def test_names_from_data_do_not_break_the_report(run):
    result = read_result(run[0])
    row = result["tasks"]["video-mme"]["samples"][0]
    row["error"], row["id"] = "a\n| b | \x1b[31m", "x"
    assert "a?| b | ?[31m" in markdown(result)


def test_a_run_of_errors_alone_says_so(run):
    result = json.loads((run[0] / "results.json").read_text())
    task = result["tasks"]["video-mme"]
    nothing = {"official": None, "strict": None}
    task["summary"] |= {"errors": 9, "metrics": {"accuracy": nothing}, "groups": {}}
    assert "No score: every question was an error." in markdown(result)
    with pytest.raises(ValueError, match="no score by an official rule: look for errors"):
        model_index(result, "mine")
    task["summary"]["errors"] = 0
    assert "No score without a judge." in markdown(result)


def test_a_run_in_which_every_question_fails_does_not_pass(perfect, model, data, tmp_path, monkeypatch, capsys):
    def answer(self, seen, samples):
        return [Output(error="the words are unknown", times=seen)] * len(samples)

    perfect()
    monkeypatch.setattr(Perfect, "answer", answer)
    assert cli.main(words(model, data, tmp_path, "activitynet-qa")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "activitynet-qa: not one of 10 questions could be asked: the words are unknown" in line
    assert (tmp_path / "model-1fps" / "results.md").is_file()


def test_letters_that_are_one_word_are_told_at_once(data, tmp_path, capsys):
    """The shipped model knows no letters."""
    assert cli.main(words("tiny", data, tmp_path, "video-mme", "--likelihood")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot tell the letters of options apart" in line and "use --likelihood text" in line


def test_a_judge_that_cannot_be_asked_is_told_before_the_first_video(
    perfect, model, data, tmp_path, monkeypatch, capsys
):
    perfect()
    monkeypatch.setattr(Perfect, "watch", lambda *_: pytest.fail("a video was watched"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = ["--judge", "gpt-3.5-turbo-0125"]
    for more, message in (
        ([], "OPENAI_API_KEY is not set, and https://api.openai.com/v1 needs a key"),
        (["--judge-url", "http://127.0.0.1:9/v1"], "nobody replies at http://127.0.0.1:9/v1"),
        (["--judge-url", "http://127.0.0.1:9/v1", "--judge-max-dollars", "0.0001"], "raise --judge-max-dollars"),
    ):
        assert cli.main([*words(model, data, tmp_path, "activitynet-qa"), *judge, *more]) == 2
        assert message in capsys.readouterr().err


def test_one_frame_is_singular():
    ways = [(None, 1.0), (None, 0.5), (1, None), (8, None)]
    said_as = [frames_text({"num_frames": frames, "fps": fps}) for frames, fps in ways]
    assert said_as == ["1 frame a second", "0.5 frames a second", "1 frame", "8 frames"]


def test_the_folder_of_several_runs_is_none_of_one(tmp_path):
    with pytest.raises(ValueError, match="give the folder of one run, such as"):
        read_result(tmp_path)


def test_the_commands_of_the_readme_are_understood():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:^|`)video-ma2mba ((?:eval|needle) [^`\n]+)", text, flags=re.MULTILINE)
    assert len(found) >= 4
    for command in found:
        arguments = console._parser().parse_args(shlex.split(command))
        assert arguments.command == command.split()[0]


def test_no_file_hides_a_package():
    """`python eval/cli.py` finds the files of its folder before everything else."""
    names = {path.stem for path in (ROOT / "eval").glob("*.py")} - {"__init__"}
    assert len(names) > 30
    assert not names & {"evaluate", *sys.stdlib_module_names, *importlib.metadata.packages_distributions()}


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['eval', '--help']\n"
        "try:\n"
        f"    runpy.run_path({cli.__file__!r}, run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'modeling_video_ma2mba'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--likelihood" in done.stdout, done.stderr
