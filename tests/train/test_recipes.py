"""Recipes are the paper's, are checked, and keep the global batch."""

import pytest

from modeling_video_ma2mba.train.recipes import accumulation_steps, load_recipe, recipe_names, training_arguments


@pytest.mark.parametrize("name", ["0.7b", "1.8b", "3.1b"])
def test_paper_recipes_are_table_6(name):
    expected = {
        "lr_scheduler": "cosine", "betas": [0.9, 0.95], "warmup_ratio": 0.1, "weight_decay": 0.05,
        "max_grad_norm": 1.0, "precision": "bf16", "fps": 1.0, "max_frames": None, "lora_rank": None, "epochs": 2,
        "checkpointing": {"method": "ma-gc"},
    }  # fmt: skip
    for stage, rate, vision, batch in (("1", 1e-3, None, 512), ("1.5", 4e-5, 4e-6, 32), ("2", 4e-5, 4e-6, 32)):
        recipe = load_recipe(name, stage).as_dict()
        assert {key: recipe[key] for key in expected} == expected
        assert (recipe["learning_rate"], recipe["vision_learning_rate"]) == (rate, vision)
        assert recipe["global_batch_size"] == batch
        everything = ["projector", "language_model", "vision_tower"]
        assert recipe["trains"] == (["projector"] if stage == "1" else everything)


def test_names_are_a_frozen_list():
    assert recipe_names() == ["0.7b", "1.8b", "3.1b", "tiny"]
    for name in recipe_names():
        for stage in ("1", "1.5", "2"):
            assert load_recipe(name, stage).stage == stage


def test_overrides_are_read_as_people_mean_them():
    recipe = load_recipe("tiny", "2", ["learning_rate=2e-5", "trains=[projector]", "max_frames=16", "precision=bf16"])
    assert (recipe.learning_rate, recipe.trains, recipe.max_frames) == (2e-5, ("projector",), 16)
    assert recipe.precision == "bf16"


@pytest.mark.parametrize(
    "override, message",
    [
        ("learning_rate", "field=value"),
        ("lr=1", "no field 'lr'; known are trains, learning_rate"),
        ("learning_rate=fast", "learning_rate='fast' must be a number"),
        ("trains=foo", "trains=..foo.. must"),
        ("learning_rate=-1", "learning_rate=-1 must be more than 0"),
        ("lora_rank=4", r"LoRA leaves the vision tower as it is; add --override .trains="),
        ("trains=[head]", "must name some of projector"),
        ("precision=fp8", "bf16, fp32"),
        ("betas=[0.9]", "two numbers"),
        ("epochs={", "no YAML"),
        ("name=x", "no field 'name'"),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("tiny", "2", [override])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="known are 0"):
        load_recipe("7b", "2")
    with pytest.raises(ValueError, match=r"known are 1, 1\.5, 2"):
        load_recipe("tiny", "3")


def test_the_global_batch_is_kept_for_any_number_of_devices():
    recipe = load_recipe("3.1b", "2")
    assert [accumulation_steps(recipe, 1, n) for n in (1, 2, 8, 32)] == [32, 16, 4, 1]
    with pytest.raises(ValueError, match="cannot be made of 3 devices"):
        accumulation_steps(recipe, 1, 3)


def test_arguments_carry_the_recipe(tmp_path):
    arguments = training_arguments(load_recipe("tiny", "2"), str(tmp_path), 2, 1, use_cpu=True, report_to=[])
    assert arguments.gradient_accumulation_steps == 4
    assert arguments.get_warmup_steps(200) == 10
    assert arguments.accelerator_config.dispatch_batches is False
