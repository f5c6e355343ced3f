"""The `evaluate` metrics load by path and say what the tasks say."""

from pathlib import Path

import pytest

from modeling_video_ma2mba.eval.task import load_task, task_names
from tests.eval.fixtures import say
from tests.eval.test_task import figures

evaluate = pytest.importorskip("evaluate", reason="evaluate is not installed (extra `eval`)")

METRICS = Path(__file__).parents[2] / "eval" / "metrics"


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Loading copies the metric into a cache; it is the tests' own, and one, as a package stays where it was found."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(folder / "metrics"))
        yield


def load(*names):
    return evaluate.load(str(METRICS / names[0]), *names[1:])


@pytest.mark.parametrize("name", [name for name in task_names() if load_task(name).option])
def test_multiple_choice_equals_the_task(name, benchmarks):
    task = load_task(name)
    samples = task.read(benchmarks[name])
    outputs = [say(sample, (sample.answer + index % 2) % len(sample.options)) for index, sample in enumerate(samples)]
    found = load("video_multiple_choice", name).compute(
        predictions=[output.text for output in outputs],
        references=[sample.answer for sample in samples],
        options=[list(sample.options) for sample in samples],
        groups=[sample.groups for sample in samples],
        ids=[sample.id for sample in samples],
    )
    expected = figures(task, samples, outputs)
    assert found == {
        key: value
        for metric, (official, strict) in expected.items()
        for key, value in ((metric, official), (f"{metric}_strict", strict))
    }


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="give one of egoschema, longvideobench"):
        load("video_multiple_choice", "activitynet-qa")
    metric = load("video_multiple_choice", "mlvu")
    with pytest.raises(ValueError, match="mlvu needs groups with task for each question"):
        metric.compute(predictions=["A"], references=[0], options=[["x", "y"]])


def test_short_answers():
    found = load("video_short_answer").compute(predictions=["No.", "two", ""], references=["no", "three", "x"])
    assert found == {"exact_match": 1 / 3}
