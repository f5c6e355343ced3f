"""Settings that no recipe can have are refused alike by all kinds of recipes."""

import pytest

from modeling_video_ma2mba.train.multimodal_recipes import load_multimodal_recipe
from modeling_video_ma2mba.train.recipes import load_recipe
from modeling_video_ma2mba.train.videomamba_recipes import load_videomamba_recipe

LOADERS = {
    "stage": lambda overrides: load_recipe("tiny", "2", overrides),
    "videomamba": lambda overrides: load_videomamba_recipe("tiny", overrides=overrides),
    "multi-modal": lambda overrides: load_multimodal_recipe("tiny", overrides),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    "override, message",
    [
        ("foo=1", "a recipe has no field 'foo'; known are "),
        ("foo", "'foo': write it as field=value"),
        ("epochs={", "the value is no YAML"),
        ("learning_rate=null", "learning_rate=None must be a number"),
        ("epochs=true", "epochs=True must be a number"),
        ("epochs=[1]", "epochs=.1. must be a number"),
        ("global_batch_size=0", "global_batch_size=0 must be more than 0"),
        ("max_bad_share=2", "max_bad_share=2 must be between 0 and 1"),
        ("weight_decay=-1", "weight_decay=-1 must be 0 or more"),
        ("betas=[1]", "betas=.1. must be two numbers"),
        ("betas=0.9", "recipe tiny.*, with .*betas=0.9"),
        ("precision=fp8", "precision='fp8' must be one of bf16, fp32"),
        ("checkpointing=5", "checkpointing=5 must be settings, such as {}, or null"),
    ],
)
def test_refused_in_one_sentence(kind, override, message):
    with pytest.raises(ValueError, match=message):
        LOADERS[kind]([override])


@pytest.mark.parametrize("kind", ["videomamba", "multi-modal"])
@pytest.mark.parametrize(
    "override, message",
    [
        ("size=xl", "size='xl' must be one of ti, s, m, b, or fields of VideoMambaConfig"),
        ("size=5", "size=5 must be one of"),
        ("size={hidden: 16}", "fields of VideoMambaConfig, which has no hidden"),
        ("warmup_epochs=99", "warmup_epochs=99 must be 0 or more and less than epochs="),
        ("crop_scale=[1, 0.5]", "crop_scale=.1, 0.5. must be two shares"),
        ("frames=[1, 2]", "frames=.1, 2. must be a whole number"),
    ],
)
def test_what_trains_a_videomamba(kind, override, message):
    with pytest.raises(ValueError, match=message):
        LOADERS[kind]([override])


def test_fields_of_a_bert():
    with pytest.raises(ValueError, match=r"must be one of bert-base, or fields of BertConfig, which has no width"):
        load_multimodal_recipe("tiny", ["text={width: 5}"])
    assert load_multimodal_recipe("tiny", ["text=bert-base"]).config(None, 9).text_config.hidden_size == 768
