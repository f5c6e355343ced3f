"""Retrieval from files to tables: a model that knows the answer, one that does not, resumed, damaged, refused."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertTokenizer

from modeling_video_ma2mba import VideoMambaImageProcessor, VideoMambaMultiModalProcessor
from modeling_video_ma2mba.eval import retrieval, retrieval_pass
from modeling_video_ma2mba.eval.retrieval import main, markdown, score
from modeling_video_ma2mba.eval.retrieval_pass import RetrievalPass
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.read_captions import read_caption_data
from modeling_video_ma2mba.train.synthetic_video import write_video
from tests.modeling_video_ma2mba.multimodal_model import WORDS, tiny_config, tiny_model, tiny_processor

COUNT, SIZE = 12, 32
EVERYTHING = {direction: [1.0, 1.0, 1.0] for direction in retrieval.DIRECTIONS}
LEVELS = [20 + 18 * number for number in range(COUNT)]  # grey of each video, by which the oracle knows it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Videos of one grey each; two captions of every third one."""
    folder = tmp_path_factory.mktemp("retrieval")
    rows = []
    for number, level in enumerate(LEVELS):
        frames = np.full((5, SIZE, SIZE, 3), level, dtype=np.uint8)
        write_video(folder / f"video{number}.mp4", frames, fps=4, options={"crf": "10", "preset": "ultrafast"})
        captions = [f"w{number}", f"the w{number}"]
        rows.append({"video": f"video{number}.mp4", "caption": captions if number % 3 == 0 else captions[0]})
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


class Oracle(nn.Module):
    """Reads a video's number from its grey and a text's from its words; compares and judges as it is told.

    Args:
        offset: it takes text n for video n + offset when it compares. judges: whether it is right when it judges.
    """

    def __init__(self, offset: int, judges: bool):
        super().__init__()
        self.config, self.offset, self.judges = tiny_config(), offset, judges
        self.config.projection_size = COUNT
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.read = self.judged = 0

    def encode_vision(self, pixel_values_videos):
        self.read += len(pixel_values_videos)
        grey = pixel_values_videos.float().mean((1, 2, 3, 4))
        number = ((grey - LEVELS[0]) / 18).round().long()
        vectors = torch.eye(COUNT)[number]
        return vectors[:, None].expand(-1, 4, -1), number[:, None, None].expand(-1, 16, 16).float()

    def encode_text(self, input_ids, attention_mask):
        number = input_ids.max(1).values - len(WORDS)
        return torch.eye(COUNT)[(number + self.offset) % COUNT], number[:, None, None].expand(-1, 5, 24).float()

    def match(self, texts, attention_mask, vision):
        self.judged += len(texts)
        right = texts[:, 0, 0] == vision[:, 0, 0]
        yes = torch.where(right, 5.0, -5.0) if self.judges else torch.zeros(len(texts))
        return torch.stack([-yes, yes], dim=1)


def oracle_processor():
    words = [*WORDS, *(f"w{number}" for number in range(COUNT))]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    images = VideoMambaImageProcessor(size=SIZE, frame_fit="stretch", num_frames=4, sampling="middle")
    return VideoMambaMultiModalProcessor(images, tokenizer)


def make_pass(data, folder, model, rerank=0):
    folder.mkdir(exist_ok=True)
    clips = read_caption_data(f"msvd:{data / 'test.json'}", DataReport())
    return RetrievalPass(model, oracle_processor(), clips, folder, max_text_tokens=8, rerank=rerank, at_once=4)


def values(result, kind="scores"):
    return {
        direction: [own[f"recall@{limit}"]["value"] for limit in (1, 5, 10)] for direction, own in result[kind].items()
    }


def test_a_model_that_knows_finds_everything(data, tmp_path):
    result = score(make_pass(data, tmp_path, Oracle(offset=0, judges=True)))
    assert result["videos"] == 12 and result["texts"] == 16 and not result["not_read"]
    assert values(result) == EVERYTHING
    assert result["scores"]["video_to_text"]["queries"] == 12 and result["scores"]["text_to_video"]["queries"] == 16
    assert set(result["places"]["text_to_video"]) == {1}


def test_candidates_are_judged_again(data, tmp_path):
    """Comparing puts the wrong video first and all others level; judging all of them finds the right one."""
    result = score(make_pass(data, tmp_path, Oracle(offset=1, judges=True), rerank=16))
    assert values(result) == EVERYTHING
    alone = values(result, "similarity_scores")
    assert alone["text_to_video"] == [0.0, 0.0, 0.0]  # ties count as before it: the last place of 12


def test_only_candidates_are_judged_and_a_judge_that_sees_nothing_finds_nothing(data, tmp_path):
    model = Oracle(offset=1, judges=True)
    result = score(make_pass(data, tmp_path / "few", model, rerank=1))
    assert model.judged == 16 + 12  # one candidate of each query: the wrong one
    assert values(result)["text_to_video"][0] == 0.0
    result = score(make_pass(data, tmp_path / "blind", Oracle(offset=0, judges=False), rerank=16))
    assert values(result)["text_to_video"] == [0.0, 0.0, 0.0]


def test_a_stopped_run_goes_on_and_reads_nothing_twice(data, tmp_path, monkeypatch):
    for name in ("VIDEOS_PER_FILE", "TEXTS_PER_FILE", "QUERIES_PER_FILE"):
        monkeypatch.setattr(retrieval_pass, name, 4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = Oracle(offset=0, judges=True)
    expected = score(make_pass(data, whole, model, rerank=3))
    assert model.read == 12 and model.judged == 3 * 16 + 3 * 12

    class Stopped(Oracle):
        def match(self, *given):
            if self.judged >= 20:
                raise KeyboardInterrupt
            return super().match(*given)

    stopped = Stopped(offset=0, judges=True)
    with pytest.raises(KeyboardInterrupt):
        score(make_pass(data, parts, stopped, rerank=3))
    again = Oracle(offset=0, judges=True)
    assert score(make_pass(data, parts, again, rerank=3)) == expected
    assert again.read == 0 and 0 < again.judged < model.judged


def test_a_video_that_cannot_be_read_is_not_found(data, tmp_path):
    (tmp_path / "videos").mkdir()
    for path in data.glob("*.mp4"):
        (tmp_path / "videos" / path.name).write_bytes(path.read_bytes() if path.stem != "video4" else b"no video")
    clips = read_caption_data(f"msvd:{data / 'test.json'},{tmp_path / 'videos'}", DataReport())
    for rerank in (0, 16):
        folder = tmp_path / f"out{rerank}"
        folder.mkdir()
        model = Oracle(offset=0, judges=True)
        passed = RetrievalPass(model, oracle_processor(), clips, folder, max_text_tokens=8, rerank=rerank)
        result = score(passed)
        assert [one["id"] for one in result["not_read"]] == ["video4.mp4"] and result["not_read"][0]["reason"]
        assert values(result)["text_to_video"] == [15 / 16] * 3
        assert values(result)["video_to_text"] == [11 / 12] * 3
        assert max(result["places"]["text_to_video"]) == 12 and max(result["places"]["video_to_text"]) == 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


def words(data, folder, output, *more):
    given = ["--model", str(folder), "--data", f"msrvtt:{data / 'test.json'}", "--output", str(output)]
    return [*given, "--workers", "0", "--device", "cpu", *more]


def test_the_command(data, folder, tmp_path, capsys):
    assert main(words(data, folder, tmp_path / "out", "--rerank", "5")) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["settings"]["max_text_tokens"] == 32 and result["settings"]["rerank"] == 5
    text = (tmp_path / "out" / "results.md").read_text()
    assert text == markdown(result) and "| text to video | re-ranked, 5 candidates |" in text
    assert "| text to video | 25M | 35.6 | 58.1 | 69.5 |" in text
    first = (tmp_path / "out" / "videos-0000000.safetensors").stat().st_mtime_ns
    assert main(words(data, folder, tmp_path / "out", "--rerank", "5")) == 0
    assert (tmp_path / "out" / "videos-0000000.safetensors").stat().st_mtime_ns == first
    capsys.readouterr()
    assert main(words(data, folder, tmp_path / "out", "--rerank", "6")) == 2
    assert "rerank was 5, is 6" in capsys.readouterr().err
    assert main(words(data, folder, tmp_path / "alone", "--rerank", "0", "--limit", "4")) == 0
    alone = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert alone["videos"] == 4 and alone["scores"] == alone["similarity_scores"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--rerank", "-1"], "--rerank -1: must be 0 or more"),
        (["--limit", "1"], "--limit 1: must be 2 or more"),
        (["--model", "nowhere"], "nowhere: has no config.json"),
        (["--data", "kinetics:x.json"], "must begin with one of captions:"),
        (["--data", "msvd:nowhere.json"], "there is no file nowhere.json"),
    ],
)
def test_bad_input_gets_one_line(data, folder, tmp_path, capsys, more, message):
    assert main([*words(data, folder, tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("retrieval: error: ") and message in error


def test_damaged_files_and_full_disks_and_pictures_are_refused(data, folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    assert main(words(data, folder, output)) == 0
    (output / "texts-0000000.safetensors").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(words(data, folder, output)) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("retrieval: error: ")
    monkeypatch.setattr(retrieval_pass, "MAX_COMPARISONS", 10)
    assert main(words(data, folder, tmp_path / "large")) == 2
    assert "12 videos and 16 texts are 192 comparisons, more than 10" in capsys.readouterr().err
    monkeypatch.undo()
    usage = retrieval_pass.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(retrieval_pass.shutil, "disk_usage", lambda path: usage)
    assert main(words(data, folder, tmp_path / "full")) == 2
    assert "choose another --output, or --rerank 0" in capsys.readouterr().err
