"""Recipes of VideoMamba: values of both sources, rates that scale with the batch, what is refused."""

import pytest

from modeling_video_ma2mba.train.recipes import training_arguments
from modeling_video_ma2mba.train.videomamba_recipes import (
    VALUES,
    load_videomamba_recipe,
    schedule_arguments,
    videomamba_recipe_names,
)


def test_every_recipe_is_whole():
    names = videomamba_recipe_names()
    for data in ("imagenet", "k400", "ssv2", "breakfast", "coin", "lvu", "tiny"):
        assert any(name.startswith(data) for name in names)
    assert sum(name.startswith("lvu-") for name in names) == 9
    for name in names:
        for values in VALUES:
            recipe = load_videomamba_recipe(name, values)
            config = recipe.config(2 if recipe.classes is None else recipe.classes)
            assert config.num_frames == recipe.frames and config.drop_path_rate == recipe.drop_path
            assert recipe.needs_extra == (name != "tiny" and recipe.mask is None)
            assert (recipe.mask is not None) == name.startswith("masked-")
            assert recipe.scaled().scaled() == recipe.scaled()


@pytest.mark.parametrize(
    "name, values, overrides, expected",
    [
        ("k400-s", "paper", [], {"learning_rate": 4e-4, "auto_augment": "rand-m9-mstd0.5-inc1", "epochs": 50}),
        ("k400-s", "public", [], {"learning_rate": 2e-4, "auto_augment": "rand-m7-n4-mstd0.5-inc1"}),
        ("k400-m", "paper", ["frames=16"], {"learning_rate": 2e-4, "global_batch_size": 256, "drop_path": 0.8}),
        ("k400-m", "public", ["frames=16"], {"learning_rate": 1e-4, "layer_decay_of_blocks": False}),
        ("k400-384-m", "public", [], {"epochs": 6, "warmup_epochs": 1, "weight_decay": 1e-8, "frames": 64}),
        ("ssv2-ti", "public", [], {"epochs": 35, "flip": False, "sampling": "ssv2", "layer_decay": 0.75}),
        ("ssv2-m", "paper", [], {"test_clips": 3, "test_crops": 4}),
        ("coin-m-masked", "public", ["frames=64"], {"test_clips": 4, "layer_decay": 0.8, "epochs": 30}),
        ("coin-m-masked", "paper", ["frames=64"], {"test_clips": 10}),
        ("breakfast-s", "public", ["frames=64"], {"drop_path": 0.4, "global_batch_size": 128, "classes": 10}),
        ("lvu-way-speaking", "public", [], {"learning_rate": 4e-4, "drop_path": 0.15, "classes": 5, "frames": 32}),
        ("lvu-view-count", "paper", [], {"classes": 1, "mixup": 0.0, "label_smoothing": 0.0}),
        ("imagenet-m", "paper", [], {"warmup_epochs": 30, "distillation": True, "drop_path": 0.5}),
        ("imagenet-m", "public", [], {"warmup_epochs": 20, "max_grad_norm": 5.0, "global_batch_size": 2048}),
        ("imagenet448-ti", "public", [], {"weight_decay": 1e-8, "drop_path": 0.0, "global_batch_size": 2048}),
        ("masked-k400-m", "paper", [], {"epochs": 800, "mask": "attention", "mask_ratio": 0.8, "flip": True}),
        ("masked-ssv2-m", "paper", [], {"flip": False, "drop_path": 0.4, "betas": (0.9, 0.95), "sampling": "ssv2"}),
        ("masked-ssv2-m", "public", [], {"epochs": 801, "flip": True, "warmup_epochs": 40, "frames": 8}),
        ("imagenet-ti", "public", [], {"auto_augment": "v0", "repeated_augmentation": 1, "weight_decay": 0.1}),
    ],
)  # fmt: skip
def test_values_of_the_sheets(name, values, overrides, expected):
    recipe = load_videomamba_recipe(name, values, overrides)
    assert {field: getattr(recipe, field) for field in expected} == expected


def test_rates_scale_with_the_batch():
    clips = load_videomamba_recipe("k400-s", "public").scaled()  # two views of each of 512 clips
    assert clips.learning_rate == pytest.approx(2e-4 * 1024 / 256)
    assert clips.min_learning_rate == clips.warmup_learning_rate == pytest.approx(1e-6 * 1024 / 256)
    for values, least in (("paper", 1e-5), ("public", 8e-5)):
        masked = load_videomamba_recipe("masked-k400-m", values).scaled()
        assert masked.learning_rate == pytest.approx(1.2e-3) and masked.min_learning_rate == pytest.approx(least)
        assert masked.warmup_learning_rate == 0
    images = load_videomamba_recipe("imagenet-s", "public").scaled()  # repeats lie within the epoch
    assert images.learning_rate == pytest.approx(4e-3) and images.min_learning_rate == pytest.approx(1e-5)


def test_the_schedule_of_transformers_has_the_recipes_bounds(tmp_path):
    import torch
    from transformers import get_scheduler

    recipe = load_videomamba_recipe("tiny", overrides=["learning_rate=1.0e-2"]).scaled()
    arguments = training_arguments(recipe, str(tmp_path), 4, 1, use_cpu=True, **schedule_arguments(recipe))
    assert arguments.gradient_accumulation_steps == 4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=arguments.get_warmup_steps(100),
        num_training_steps=100, scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )  # fmt: skip
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-5) and rates[9] == max(rates) == pytest.approx(1e-2)
    assert rates[99] == pytest.approx(2e-5)  # of the last step


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("k500", [], "unknown recipe 'k500'; known are imagenet-ti"),
        ("tiny", ["speed=3"], "no field 'speed'; known are size, frames"),
        ("tiny", ["epochs"], "write it as field=value"),
        ("tiny", ["epochs=many"], "epochs='many' must be a number"),
        ("tiny", ["frames=2.5"], "frames=2.5 must be a whole number"),
        ("tiny", ["seed=true"], "seed=True must be a whole number"),
        ("tiny", ["drop_path=2"], "drop_path=2 must be between 0 and 1"),
        ("tiny", ["warmup_epochs=10"], "less than epochs=10"),
        ("tiny", ["crop_scale=[0.5]"], "crop_scale=.0.5. must be two shares"),
        ("tiny", ["sampling=dense"], "must be one of sparse"),
        ("tiny", ["size=xl"], "must be one of ti, s, m, b"),
        ("tiny", ["min_learning_rate=1"], "must be at least min_learning_rate=1"),
        ("lvu-view-count", ["mixup=0.8"], "cannot be mixed or smoothed"),
        ("masked-tiny", ["mask=cube"], "mask='cube' must be one of random, tube"),
        ("masked-tiny", ["mask_ratio=1"], "mask_ratio=1 must be above 0 and below 1"),
        ("tiny", ["mask=tube"], "mask_ratio=None must be above 0 and below 1; aligned_layers must be a number"),
        ("masked-tiny", ["aligned_layers=0"], "aligned_layers=0 must be more than 0"),
        ("masked-tiny", ["mixup=0.8", "classes=3"], "no labels: leave out classes, mixup"),
        ("masked-tiny", ["frames=null"], "masks are for clips"),
        ("masked-tiny", ["crop_sides=[0.5, 0.75]"], r"crop_sides=\[0.5, 0.75\] must be shares, falling"),
        ("masked-tiny", ["crop_scale=[0.1, 1]"], "goes with none of crop_scale"),
        ("imagenet-s", ["test_crops=3"], "an image has one view"),
        ("k400-m", ["frames=24"], "is given for 8, 16, 32, 64 frames, not for 24: add --override"),
    ],
)  # fmt: skip
def test_what_is_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_videomamba_recipe(name, "public", overrides)
    with pytest.raises(ValueError, match="choose paper or public"):
        load_videomamba_recipe("tiny", "mine")
