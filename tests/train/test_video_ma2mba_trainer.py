"""The Trainer: learning rates per part, what is logged, and the guard against numbers that are not finite."""

import pytest
import torch

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.parameter_groups import set_trained_parts
from modeling_video_ma2mba.train.recipes import load_recipe, training_arguments
from modeling_video_ma2mba.train.trainer import VideoMa2mbaTrainer

VIDEO_ID, FRAME_TOKENS = 3, 4


class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        frames = 1 + i % 3
        generator = torch.Generator().manual_seed(i)
        pixels = torch.randint(0, 255, (frames, 3, 56, 56), generator=generator, dtype=torch.uint8)
        prompt = [VIDEO_ID] * (FRAME_TOKENS * frames) + [8]
        return {"pixels": pixels, "ids": [*prompt, 10 + i % 4, 0], "labels": [-100] * len(prompt) + [10 + i % 4, 0]}


def collate(rows):
    (row,) = rows
    return {
        "input_ids": torch.tensor(row["ids"])[None],
        "labels": torch.tensor(row["labels"])[None],
        "pixel_values_videos": [row["pixels"]],
    }


@pytest.fixture
def trainer(tiny_video_config, tmp_path):
    """`trainer(stage, *overrides)` -> a trainer over a fresh model, four samples to a step."""

    def build(stage, *overrides):
        recipe = load_recipe("tiny", stage, ["global_batch_size=4", "max_steps=3", *overrides])
        torch.manual_seed(0)
        model = VideoMa2mbaForConditionalGeneration(tiny_video_config)
        set_trained_parts(model, recipe.trains)
        arguments = training_arguments(
            recipe, str(tmp_path), 1, 1, use_cpu=True, report_to=[], logging_steps=1, disable_tqdm=True,
            save_strategy="no",
        )  # fmt: skip
        return VideoMa2mbaTrainer(
            model=model, args=arguments, train_dataset=Clips(), data_collator=collate, recipe=recipe
        )

    return build


@pytest.mark.parametrize("stage", ["1", "1.5", "2"])
def test_a_stage_moves_its_parts_and_nothing_else(trainer, stage):
    made = trainer(stage)
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    made.train()
    moved = {name for name, parameter in made.model.named_parameters() if not torch.equal(parameter, before[name])}
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    assert moved == trained
    assert all("projector" in name for name in moved) == (stage == "1")


def test_learning_rates_keep_their_ratio_all_the_way(trainer):
    made = trainer("2", "vision_learning_rate=1e-5", "learning_rate=1e-3")
    made.train()
    rates = {group["name"].split(",")[0]: group["initial_lr"] for group in made.optimizer.param_groups}
    assert rates == {"vision": 1e-5, "language": 1e-3}


def test_the_log_says_what_a_long_run_needs(trainer):
    made = trainer("2")
    made.train()
    entries = [entry for entry in made.state.log_history if "loss" in entry]
    for entry in entries:
        assert entry["tokens_per_second"] > entry["frames_per_second"] > 0
        for part in ("vision_tower", "projector", "language_model"):
            assert entry[f"grad_norm_{part}"] > 0


def test_the_log_has_the_peak_of_the_process_on_a_cpu(trainer):
    made = trainer("2")
    made.train()
    peaks = [entry["peak_memory_gb"] for entry in made.state.log_history if "loss" in entry]
    held = torch.empty(300_000_000, dtype=torch.uint8).fill_(1)
    made.log({"loss": 0.0})
    del held
    made.log({"loss": 0.0})
    most, after = (entry["peak_memory_gb"] for entry in made.state.log_history[-2:])
    assert 0.05 < peaks[0] <= peaks[-1] < 100 and peaks == sorted(peaks)
    assert most >= peaks[-1] and after == pytest.approx(most, abs=0.05)  # a peak, which does not fall
    assert most > 0.3


def test_the_planner_learns_what_the_optimizer_holds(trainer):
    made = trainer("1", "checkpointing={method: ma-gc}")
    made.train()
    trained = sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    assert made.model.model.language_model.checkpointing.settings.optimizer_bytes == 8 * trained


def test_a_number_that_is_not_finite_stops_the_run_and_is_named(trainer):
    made = trainer("2")
    layer = made.model.model.language_model.layers[1]
    steps = []

    def spoil(module, arguments):
        steps.append(1)
        if made.state.global_step == 1:
            with torch.no_grad():
                module.weight[0, 0] = float("nan")

    layer.mixer.in_proj.register_forward_pre_hook(spoil)
    with pytest.raises(
        FloatingPointError, match=r"step 2: the loss is nan; first seen in .*layers\.1\.mixer\.in_proj"
    ):
        made.train()
    assert made.state.global_step == 1


def test_a_gradient_that_is_not_finite_stops_the_run(trainer):
    made = trainer("2")
    weight = made.model.model.multi_modal_projector.linear_2.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"a gradient is not finite; first seen in .*linear_2\.weight"):
        made.train()
    assert torch.isfinite(weight).all()


def test_narrow_weights_are_refused(tiny_video_config, tmp_path):
    recipe = load_recipe("tiny", "2")
    model = VideoMa2mbaForConditionalGeneration(tiny_video_config).bfloat16()
    arguments = training_arguments(recipe, str(tmp_path), 1, 1, use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match="keeps no fp32 copy"):
        VideoMa2mbaTrainer(model=model, args=arguments, recipe=recipe)
