"""Wordings: templates are expanded whole, held-out ones are no others, and there are many to train on."""

from modeling_video_ma2mba.train.scene_wordings import HELD_OUT_WORDINGS, TRAINING_WORDINGS, expand


def test_templates_stand_for_all_their_alternatives():
    assert expand("what digit ?") == ("what digit ?",)
    assert expand("[a|b] c [|d|e] .") == ("a c .", "a c d .", "a c e .", "b c .", "b c d .", "b c e .")


def test_training_has_many_wordings_and_none_that_is_held_out():
    assert set(TRAINING_WORDINGS) == set(HELD_OUT_WORDINGS)
    for type, held_out in HELD_OUT_WORDINGS.items():
        training = TRAINING_WORDINGS[type]
        assert len(set(training)) == len(training) >= (20 if type != "describe" else 5)
        assert not set(training) & set(held_out)
        # Nothing is left unexpanded.
        assert not any(sign in wording for wording in (*training, *held_out) for sign in "[]|")
