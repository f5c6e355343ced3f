"""The processor: placeholder counts, sampling options, batches, chat format, save and load."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from modeling_video_ma2mba.processing.frame_source import FrameSource
from modeling_video_ma2mba.processing.image_processing_video_ma2mba import VideoMa2mbaImageProcessor
from modeling_video_ma2mba.processing.processing_video_ma2mba import VideoMa2mbaProcessor
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.synthetic_video import write_video

TOKENS = 4


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of 3 s and 5 s at 10 FPS."""
    folder = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    paths = []
    for seconds in (3, 5):
        frames = np.repeat(random.integers(0, 255, (seconds, 4, 6, 3), dtype=np.uint8), 10, axis=0)
        frames = frames.repeat(16, axis=1).repeat(16, axis=2)
        path = folder / f"{seconds} s.mp4"
        write_video(path, frames, fps=10)
        paths.append(str(path))
    return paths


def messages(video, text="who wins ?"):
    return [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": text}]}]


def test_chat_template_is_the_papers_table_5(processor):
    turns = [
        *messages("a.mp4", "what ?"),
        {"role": "assistant", "content": "car"},
        {"role": "user", "content": "who ?"},
    ]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        "<|system|>You are a helpful assistant.<|endoftext|><|user|><video>what ?<|endoftext|>"
        "<|assistant|>car<|endoftext|><|user|>who ?<|endoftext|><|assistant|>"
    )
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert processor.apply_chat_template(own) == "<|system|>Be brief.<|endoftext|><|user|>hi<|endoftext|>"


def test_chat_template_names_a_wrong_role_and_type(processor):
    with pytest.raises(Exception, match="given: tool"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])
    with pytest.raises(Exception, match="given: audio"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])


def test_apply_chat_template_reads_the_video(processor, videos):
    inputs = processor.apply_chat_template(
        messages(videos[0]), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 56, 56)
    assert inputs["pixel_values_videos"].dtype == torch.uint8
    assert (inputs["input_ids"] == processor.video_token_id).sum() == 3 * TOKENS
    assert inputs["attention_mask"].all()
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values_videos"}


@pytest.mark.parametrize(
    ("options", "frames"), [({}, 3), ({"fps": 2.0}, 6), ({"num_frames": 7}, 7), ({"max_frames": 2}, 2)]
)
def test_sampling_options(processor, videos, options, frames):
    inputs = processor(text="<video>", videos=videos[0], return_tensors="pt", **options)
    assert inputs["pixel_values_videos"].shape[1] == frames
    assert inputs["input_ids"].shape == (1, frames * TOKENS)
    through_template = processor.apply_chat_template(
        messages(videos[0]), tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=options
    )
    assert torch.equal(through_template["pixel_values_videos"], inputs["pixel_values_videos"])


def test_batch_of_unequal_videos_is_padded_on_the_left(processor, videos):
    inputs = processor(text=["<video>who ?", "<video>what is it ?"], videos=[[v] for v in videos], return_tensors="pt")
    assert [len(v) for v in inputs["pixel_values_videos"]] == [3, 5]
    assert inputs["attention_mask"].sum(1).tolist() == [3 * TOKENS + 2, 5 * TOKENS + 4]
    assert inputs["attention_mask"][:, -1].all()
    alone = processor(text="<video>who ?", videos=videos[0], return_tensors="pt")
    assert torch.equal(inputs["input_ids"][0, inputs["attention_mask"][0].bool()], alone["input_ids"][0])
    right = processor(text=["<video>", "<video>"], videos=videos, return_tensors="pt", padding_side="right")
    assert right["attention_mask"][:, 0].all()


def test_several_images_and_videos_in_one_prompt(processor, videos):
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    inputs = processor(
        text="<image>red<video>who ?<image><video>", images=[image, image], videos=videos, return_tensors="pt"
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == 2 * TOKENS
    assert ids.count(processor.video_token_id) == 8 * TOKENS
    assert ids[:TOKENS] == [processor.image_token_id] * TOKENS
    assert inputs["pixel_values"].shape == (2, 3, 56, 56)


def test_frames_in_every_form_are_equal(processor, videos):
    reference = processor(text="<video>", videos=videos[0], return_tensors="pt")["pixel_values_videos"][0]
    channels_last = reference.permute(0, 2, 3, 1)
    forms = [reference, reference.numpy(), channels_last, channels_last.numpy()]
    forms.append([Image.fromarray(frame) for frame in channels_last.numpy()])
    for form in forms:
        again = processor(text="<video>", videos=[form], return_tensors="pt")["pixel_values_videos"][0]
        assert torch.equal(again, reference)
    source = FrameSource(reference.numpy())
    inputs = processor(text="<video>", videos=[source], return_tensors="pt")
    assert inputs["pixel_values_videos"][0] is source
    assert inputs["input_ids"].shape == (1, 3 * TOKENS)


def test_errors_say_what_to_do(processor, videos, tmp_path):
    with pytest.raises(ValueError, match="0 <video> and 1 videos"):
        processor(text="who ?", videos=videos[0])
    with pytest.raises(ValueError, match="2 <video> and 1 videos"):
        processor(text="<video><video>", videos=videos[0])
    with pytest.raises(ValueError, match="1 <image> and 0 images"):
        processor(text="<image>")
    with pytest.raises(ValueError, match="exclude each other"):
        processor(text="<video>", videos=videos[0], fps=1.0, num_frames=3)
    for options in ({"fps": 0}, {"max_frames": 0}, {"num_frames": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            processor(text="<video>", videos=videos[0], **options)
    with pytest.raises(ValueError, match="truncation"):
        processor(text="<video>", videos=videos[0], truncation=True)
    with pytest.raises(ValueError, match="give text"):
        processor(videos=videos[0])
    with pytest.raises(VideoReadError, match=r"missing\.mp4"):
        processor(text="<video>", videos=str(tmp_path / "missing.mp4"))
    with pytest.raises(TypeError, match="int"):
        processor(text="<video>", videos=3)


def test_save_and_load_keep_everything(processor, tiny_tokenizer, tmp_path, videos):
    changed = VideoMa2mbaProcessor(
        VideoMa2mbaImageProcessor(size=42, frame_fit="stretch"),
        tiny_tokenizer,
        tokens_per_frame=9,
        fps=2.0,
        max_frames=3,
    )
    changed.save_pretrained(tmp_path)
    loaded = VideoMa2mbaProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.frame_fit == "stretch"
    assert (loaded.fps, loaded.max_frames, loaded.tokens_per_frame) == (2.0, 3, 9)
    assert loaded.chat_template == changed.chat_template
    one, two = (p(text="<video>who ?", videos=videos[0], return_tensors="pt") for p in (changed, loaded))
    assert all(torch.equal(one[name], two[name]) for name in one)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "VideoMa2mbaProcessor"


def test_auto_processor_finds_it_beside_a_config(processor, tiny_video_model, tmp_path):
    tiny_video_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is VideoMa2mbaProcessor


def test_a_tokenizer_without_placeholders_is_refused(tiny_tokenizer):
    bare = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer.__class__.from_str(_bare_tokenizer())
    )
    with pytest.raises(ValueError, match="has no token <image>"):
        VideoMa2mbaProcessor(VideoMa2mbaImageProcessor(), bare)


def _bare_tokenizer() -> str:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"a": 0})).to_str()


# Pixels are pinned: one resize for images, frames, training and answers.
def _pattern(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 3 % 256, columns * 5 % 256, (rows + columns) * 7 % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (57, 56), (20, 31)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fitted_frames(fit, shape):
    processor = VideoMa2mbaImageProcessor(size=56, frame_fit=fit)
    array = _pattern(*shape)
    frame = processor.fit(array)
    assert frame.shape == (3, 56, 56) and frame.dtype == np.uint8
    assert np.array_equal(frame, processor.fit(Image.fromarray(array)))
    assert np.array_equal(processor([array], return_tensors="np")["pixel_values"][0], frame)
    mean = np.array([int(m * 255) for m in processor.image_mean])
    corner = frame[:, 0, 0]
    if fit == "pad" and shape != (57, 56):
        assert np.array_equal(corner, mean)


PINNED = {
    "crop": "3de35815f11b2e23",
    "pad": "ff68c296101dd038",
    "stretch": "072b8c96c139dc5c",
}


@pytest.mark.parametrize("fit", sorted(PINNED))
def test_pixel_hashes(fit):
    frame = VideoMa2mbaImageProcessor(size=56, frame_fit=fit).fit(_pattern(90, 160))
    assert hashlib.sha256(frame.tobytes()).hexdigest()[:16] == PINNED[fit]


def test_crop_equals_clips_own_preprocessing():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    clip = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_rescale=False, do_normalize=False
    )
    for shape in ((90, 160), (160, 90), (57, 56), (20, 31), (333, 101)):
        array = _pattern(*shape)
        theirs = np.asarray(clip(Image.fromarray(array), return_tensors="np")["pixel_values"][0])
        ours = VideoMa2mbaImageProcessor(size=56).fit(array)
        assert np.array_equal(ours, theirs.round().astype(np.uint8))


def test_image_processor_refuses_nonsense():
    with pytest.raises(ValueError, match="frame_fit='zoom'"):
        VideoMa2mbaImageProcessor(frame_fit="zoom")
    with pytest.raises(ValueError, match="size=0"):
        VideoMa2mbaImageProcessor(size=0)
    with pytest.raises(ValueError, match="dtype float64"):
        VideoMa2mbaImageProcessor(size=56)([np.zeros((4, 4, 3))])
    with pytest.raises(ValueError, match="shape"):
        VideoMa2mbaImageProcessor(size=56)([np.zeros((4, 4, 7), dtype=np.uint8)])
