"""Reports count rows and samples, list what was left out, and stop a run with one clear line."""

import json
import pickle

import pytest

from modeling_video_ma2mba.train.data_report import BadRow, DataReport


@pytest.fixture
def report():
    report = DataReport()
    for file, good, bad in (("a.json", 90, 2), ("b.csv", 4, 4)):
        report.count_rows(file, good + bad)
        for _ in range(good):
            report.count_sample(file)
        for row in range(bad):
            reason = "media not found" if row else "empty answer"
            report.leave_out(file, row + 1, f"id{row}", BadRow(reason, f"clip{row}.mp4" if row else ""))
    return report


def test_summary_counts_by_file_and_reason(report):
    report.leave_out("b.csv", None, "v1", BadRow("in the list of excluded ids"), rows=0)
    report.note("grouped")
    report.note("grouped")
    lines = report.summary().splitlines()
    assert lines[0] == "a.json: 92 rows, 90 samples, 2 rows left out (1 empty answer, 1 media not found)"
    assert lines[1] == "b.csv: 8 rows, 4 samples, 4 rows left out (3 media not found, 1 empty answer)"
    assert lines[2:] == ["left out on request: 1 samples, in the list of excluded ids", "grouped"]
    assert report.bad_rows == 6


def test_the_list_is_json_lines_whatever_the_data_hold(report, tmp_path):
    report.leave_out("c.jsonl", 7, "na\udcefve\n\x1b[31m", BadRow("not UTF-8", "value"), rows=3)
    report.write(tmp_path / "runs" / "left_out.jsonl")
    entries = [json.loads(line) for line in (tmp_path / "runs" / "left_out.jsonl").read_text("utf-8").splitlines()]
    assert len(entries) == 7
    assert entries[0] == {
        "file": "a.json", "row": 1, "id": "id0", "reason": "empty answer", "detail": "", "rows": 1
    }  # fmt: skip
    assert (entries[-1]["file"], entries[-1]["row"], entries[-1]["rows"]) == ("c.jsonl", 7, 3)


def test_the_limit_names_the_share_the_reasons_the_file_and_an_example(report):
    report.check_limit(0.06)
    with pytest.raises(ValueError) as raised:
        report.check_limit(0.05)
    message = str(raised.value)
    assert "6 of 100 rows (6.0%)" in message and "max_bad_share=5.0%" in message
    assert "4 media not found, 2 empty answer; most of them in b.csv" in message
    assert "\n" not in message and "--override max_bad_share" in message


def test_a_file_that_gives_nothing_stops_the_run_however_small_its_share():
    report = DataReport()
    report.count_rows("big.json", 10_000)
    report.count_sample("big.json")
    report.count_rows("small.json", 2)
    report.leave_out("small.json", 1, "", BadRow("media not found", "x\x1b[2J\n.mp4"), rows=2)
    with pytest.raises(ValueError, match=r"small\.json: not one of 2 rows .* 2 media not found \(e\.g\. row 1: x\?"):
        report.check_limit(1.0)


@pytest.mark.parametrize("share", [-0.1, 1.5, 5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        DataReport().check_limit(share)


def test_what_was_left_out_on_request_is_no_fault():
    report = DataReport()
    report.count_rows("a.json", 1)
    report.count_sample("a.json")
    report.leave_out("a.json", None, "v", BadRow("in the list of excluded ids"), rows=0)
    report.check_limit(0.0)


def test_a_bad_row_travels_between_processes():
    bad = pickle.loads(pickle.dumps(BadRow("wrong type", "id is a list")))
    assert (bad.reason, bad.detail, str(bad)) == ("wrong type", "id is a list", "wrong type: id is a list")
