"""transformers' Trainer on the video model: all parameters move, a killed run resumes exactly."""

import dataclasses

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.live_memory import MemoryMeter

VIDEO_ID, FRAME_TOKENS = 3, 4


class ColourQuestions(torch.utils.data.Dataset):
    """Random frames, two words of question, an answer and the end token."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        frames = 1 + i % 3
        pixels = torch.randint(
            0, 255, (frames, 3, 56, 56), generator=torch.Generator().manual_seed(i), dtype=torch.uint8
        )
        prompt = [VIDEO_ID] * (FRAME_TOKENS * frames) + [8, 9]
        answer = [10 + i % 4, 0]
        return {"pixels": pixels, "ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def collate(rows):
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        length = len(row["ids"])
        ids[i, :length] = torch.tensor(row["ids"])
        labels[i, :length] = torch.tensor(row["labels"])
        mask[i, :length] = 1
    pixels = [row["pixels"] for row in rows]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values_videos": pixels}


@pytest.fixture
def train(tiny_video_config, tmp_path):
    """Return a function that trains a fresh model and returns (trainer, model)."""

    def run(name, steps, resume=None, **options):
        torch.manual_seed(0)
        model = VideoMa2mbaForConditionalGeneration(tiny_video_config)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name), max_steps=steps, per_device_train_batch_size=3,
            gradient_accumulation_steps=2, learning_rate=3e-3, logging_steps=1, report_to=[], use_cpu=True,
            remove_unused_columns=False, save_steps=2, seed=0, disable_tqdm=True, **options,
        )  # fmt: skip
        data = ColourQuestions()
        trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=collate)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, model

    return run


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_moves_every_parameter_but_the_listed_ones(train, tiny_video_config):
    torch.manual_seed(0)
    before = dict(VideoMa2mbaForConditionalGeneration(tiny_video_config).named_parameters())
    trainer, model = train("run", 6)
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert sorted(still) == sorted(model.unused_parameters())
    assert losses(trainer)[-1] < losses(trainer)[0] / 2
    assert trainer.evaluate()["eval_loss"] < losses(trainer)[0] / 2


def test_a_killed_run_resumes_exactly(train, tmp_path):
    trainer, model = train("whole", 6)
    resumed, again = train("resumed", 6, resume=str(tmp_path / "whole" / "checkpoint-4"))
    for (name, one), two in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(one, two), name
    assert losses(resumed) == losses(trainer)


def test_per_layer_checkpointing_changes_nothing(train):
    plain, model = train("plain", 3)
    checkpointed, again = train(
        "checkpointed", 3, gradient_checkpointing=True, gradient_checkpointing_kwargs={"method": "layer"}
    )
    assert losses(plain) == losses(checkpointed)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters()))


@pytest.fixture(params=["gradient", "activation"])
def multi_axis(request):
    """The Trainer's options for it, under the names before and since transformers 5.23."""
    if not any(field.name == f"{request.param}_checkpointing" for field in dataclasses.fields(TrainingArguments)):
        pytest.skip("this transformers has no activation_checkpointing")
    kwargs = {"method": "ma-gc", "layer_interval": 1, "sequence_interval": 7}
    return {f"{request.param}_checkpointing": True, f"{request.param}_checkpointing_kwargs": kwargs}


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_multi_axis_checkpointing_trains_like_plain(train, multi_axis):
    plain, model = train("plain", 4, max_grad_norm=1.0)
    checkpointed, again = train("checkpointed", 4, max_grad_norm=1.0, **multi_axis)
    assert again.model.language_model.checkpointing is not None and model.model.language_model.checkpointing is None
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-5)
    norms, expected = (
        [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        for trainer in (checkpointed, plain)
    )
    assert norms == pytest.approx(expected, rel=1e-5) and min(norms) > 1, "nothing was clipped"
    for (name, one), two in zip(model.named_parameters(), again.parameters()):
        # A bias that shifts all attention scores of a query alike has a gradient of rounding alone.
        if not name.endswith("k_proj.bias"):
            assert (one - two).norm() <= 1e-5 * one.norm(), name


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_a_killed_run_with_multi_axis_checkpointing_resumes_exactly(train, multi_axis, tmp_path):
    trainer, model = train("whole", 6, **multi_axis)
    resumed, again = train("resumed", 6, resume=str(tmp_path / "whole" / "checkpoint-4"), **multi_axis)
    for (name, one), two in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(one, two), name
    assert losses(resumed) == losses(trainer)


def test_bf16_autocast_keeps_fp32_master_weights(train):
    trainer, model = train("bf16", 3, bf16=True)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    reference, _ = train("fp32", 3)
    assert losses(trainer) != losses(reference)
    assert losses(trainer) == pytest.approx(losses(reference), rel=0.2)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_a_step_of_the_trainer_stays_inside_its_memory_budget(tiny_video_config, tmp_path):
    """From the second step on: weights, gradients, Adam's state, checkpoints and what is computed."""
    budget = 4_700_000
    torch.manual_seed(0)
    model = VideoMa2mbaForConditionalGeneration(tiny_video_config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=1, report_to=[], use_cpu=True,
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"method": "ma-gc", "memory_budget": budget},
    )  # fmt: skip
    peaks = []

    class Measured(Trainer):
        def training_step(self, *given, **options):
            state = [t for values in self.optimizer.optimizer.state.values() for t in values.values()]
            held = [*self.model.parameters(), *self.model.buffers(), *state]
            held += [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            with MemoryMeter(torch.device("cpu")) as meter:
                loss = super().training_step(*given, **options)
            peaks.append(meter.peak + sum(t.nbytes for t in held))
            return loss

    class LongVideos(ColourQuestions):
        def __getitem__(self, i):
            pixels = torch.full((300, 3, 56, 56), 10 * i, dtype=torch.uint8)
            ids = [VIDEO_ID] * (FRAME_TOKENS * len(pixels)) + [8, 9, 10, 0]
            return {"pixels": pixels, "ids": ids, "labels": [-100] * (len(ids) - 2) + [10, 0]}

    trainer = Measured(model=model, args=arguments, train_dataset=LongVideos(), data_collator=collate)
    trainer.train()
    (plan,) = model.model.language_model.checkpointing.plans.values()
    assert plan.name != "none" and plan.predicted.device <= budget
    # The first step measures what a layer costs, before there are gradients and an optimizer's state.
    assert len(peaks) == 3 and max(peaks[1:]) <= budget
