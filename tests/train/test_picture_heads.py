"""A tower with heads: what it is told about a picture is true, what is behind the feature layer stays."""

import numpy as np
import torch

from modeling_video_ma2mba.train.picture_heads import NO_DIGIT, TowerWithHeads, draw_pictures
from modeling_video_ma2mba.train.synthetic_video import COLOURS
from modeling_video_ma2mba.train.tiny_model import IMAGE_SIZE, build_tiny_model


def draw(count, fit=None):
    fit = build_tiny_model(0)[1].image_processor.fit if fit is None else fit
    return draw_pictures([(5, index) for index in range(count)], 8, 3, fit)


def test_labels_are_what_the_picture_shows():
    batch = draw(40, fit=lambda frame: np.moveaxis(frame, -1, 0))
    assert batch["pictures"].shape == (120, 3, 112, 112) and batch["pictures"].dtype == torch.uint8
    digits = (batch["digit"] != NO_DIGIT).reshape(40, 3)
    assert 20 < digits[:, 0].sum() < 40 and not digits[:, 1:].any()
    for picture, colour, centre, digit in zip(batch["pictures"], batch["colour"], batch["centre"], batch["digit"]):
        if digit == NO_DIGIT:  # else its box may hide the shape
            x, y = (centre * 112).round().long().tolist()
            shown = picture[:, y, x].float()
            distances = [(shown - torch.tensor(rgb)).abs().sum().item() for rgb in COLOURS.values()]
            assert int(np.argmin(distances)) == colour


def test_training_moves_what_runs():
    model, _ = build_tiny_model(seed=0)
    heads = TowerWithHeads(model)
    unused = {name.removeprefix("model.vision_tower.") for name in model.unused_parameters()}
    out = heads(**draw(4))
    assert out["loss"].ndim == 0 and out["colour"].shape == (12, len(COLOURS)) and out["centre"].shape == (12, 2)
    out["loss"].backward()
    for name, parameter in heads.tower.named_parameters():
        assert (parameter.grad is None) == (name in unused), name
    assert model.config.vision_config.image_size == IMAGE_SIZE
