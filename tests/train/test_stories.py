"""Stories: text that says what every frame shows; loss on the story and the answers alone."""

import torch

from modeling_video_ma2mba.train.collator import IGNORE_INDEX
from modeling_video_ma2mba.train.scene_wordings import TRAINING_WORDINGS
from modeling_video_ma2mba.train.stories import Story, StoryCollator, tell_story
from modeling_video_ma2mba.train.synthetic_video import COLOURS
from modeling_video_ma2mba.train.tiny_model import build_tiny_model


def test_a_story_tells_every_frame_and_ends_with_a_description():
    story = tell_story((1, 2, 3), 8, 28, 20)
    assert story == tell_story((1, 2, 3), 8, 28, 20) != tell_story((1, 2, 4), 8, 28, 20)
    assert sum(word in COLOURS for word in story.text.split()) == 8
    assert story.turns[-1][0] in TRAINING_WORDINGS["describe"] and " digit " in story.turns[-1][1]


def test_loss_is_on_story_and_answers():
    _, processor = build_tiny_model(seed=0)
    stories = [
        Story("red circle top left .", (("what colour ?", "red"), ("what shape ?", "circle"))),
        Story("blue square top left . digit 3 .", (("which digit ?", "3"),)),
        Story("white cross top left .", (("what colour ?", "white"),), learn_text=False),
    ]
    batch = StoryCollator(processor)([stories])
    kept = [
        processor.tokenizer.decode(ids[labels != IGNORE_INDEX])
        for ids, labels in zip(batch["input_ids"], batch["labels"])
    ]
    assert kept == [
        "red circle top left . red <|endoftext|> circle <|endoftext|>",
        "blue square top left . digit 3 . 3 <|endoftext|>",
        "white <|endoftext|>",
    ]
    assert batch["attention_mask"].shape == batch["labels"].shape == batch["input_ids"].shape
    assert torch.equal(batch["labels"][batch["labels"] >= 0], batch["input_ids"][batch["labels"] >= 0])
