"""Wordings of the questions about drawn clips: a hundred or so for each type to train on, and a few that are held out.

A type is asked in sentences with alternatives: "[what|which] digit was [shown|seen] ?" stands for four wordings. With
four or five wordings for each type a small model learns them by heart, and takes a new one for a question of another
type; with these it reads the words that matter. `{slots}` are filled by `scene_questions`.
"""

import itertools
import re

_SCENE = (
    "[what|which] {attribute} [was|came|] in the {place} scene ?",
    "[what|which] {attribute} [was|came|was seen|was shown] {place} ?",
    "[what|which] was the {attribute} [of|in] the {place} scene ?",
    "the {place} scene : [what|which] {attribute} [|was it|was shown|was seen] ?",
    "[name|say] the {attribute} [of|in] the {place} scene .",
    "the {attribute} [of|in] the {place} scene ?",
)
_SCENE_HELD_OUT = (
    "which {attribute} was in the {place} scene ?",
    "what {attribute} was shown {place} ?",
    "name the {attribute} in the {place} scene .",
)
_NEXT = (
    "[what|which scene] [came|was shown|was seen|was] just {relation} the {scene} ?",
    "just {relation} the {scene} : [what|which scene] [came|was shown|was seen|was it] ?",
    "[name|say] [the scene|what came|what was shown|what was seen] just {relation} the {scene} .",
    "the scene just {relation} the {scene} ?",
)
_NEXT_HELD_OUT = (
    "which scene was shown just {relation} the {scene} ?",
    "just {relation} the {scene} : what was shown ?",
    "name what came just {relation} the {scene} .",
)


def _related(templates: tuple[str, ...], relation: str) -> tuple[str, ...]:
    return tuple(template.replace("{relation}", relation) for template in templates)


_TRAINING = {
    "edge": _SCENE,
    "index": _SCENE,
    "after": _related(_NEXT, "after"),
    "before": _related(_NEXT, "before"),
    "count": (
        "how many {kind} scenes [|came|were shown|were seen|were there] ?",
        "[what|which] was the number of {kind} scenes [|shown|seen] ?",
        "the number of {kind} scenes [|shown|seen] ?",
        "[say|count|name] the number of {kind} scenes [|shown|seen] .",
        "count [the|all] {kind} scenes [|shown|seen] .",
        "the {kind} scenes : [how many|what number|which number] [|came|were shown|were seen] ?",
    ),
    "motion": (
        "[which way|what way|where] did the {scene} [move|go] ?",
        "[which way|what way|where] was the {scene} [moving|going] ?",
        "the {scene} : [which way|what way|where] did it [move|go] ?",
        "the {scene} : [which way|what way|where] was it [moving|going] ?",
        "[name|say] the way [of the {scene}|the {scene} moved|the {scene} was going] .",
        "the way of the {scene} ?",
    ),
    "order": (
        "did the {scene} [scene|] come before the {other} [scene|] ?",
        "was the {scene} [scene|] [|shown|seen] before the {other} [scene|] ?",
        "the {scene} [scene|] : [did it come|was it|was it shown|was it seen] before the {other} [scene|] ?",
    ),
    "duration": (
        "which [|scene] [lasted|was|was shown|went on] longer , the {place} or the {other} [|scene|one] ?",
        "the {place} or the {other} [|scene|one] : which [|scene|one] [lasted|was|was shown|went on] longer ?",
        "[name|say] the longer [one|scene] , the {place} or the {other} [|one|scene] .",
    ),
    "needle": (
        "[which|what] digit [was shown|was it|was seen|came|was there] ?",
        "[which|what] was the digit [|shown|seen] ?",
        "the digit [|shown|seen] : [which|what] [was it|one was it] ?",
        "[name|say] [which|what] digit was [shown|seen] .",
        "[name|say] the digit [|shown|seen] .",
    ),
    "describe": (
        "describe [the scenes|all scenes|all the scenes|each scene|what was shown|what was seen] .",
        "say what was [shown|seen] .",
    ),
}

# Every word of them stands in a wording for training.
_HELD_OUT = {
    "edge": _SCENE_HELD_OUT,
    "index": _SCENE_HELD_OUT,
    "after": _related(_NEXT_HELD_OUT, "after"),
    "before": _related(_NEXT_HELD_OUT, "before"),
    "count": (
        "name the number of {kind} scenes .",
        "what was the number of {kind} scenes shown ?",
        "the {kind} scenes : how many ?",
    ),
    "motion": (
        "which way did the {scene} go ?",
        "what way did the {scene} move ?",
        "the {scene} : where did it move ?",
    ),
    "order": (
        "did the {scene} scene come before the {other} scene ?",
        "the {scene} : was it before the {other} ?",
        "the {scene} : was it shown before the {other} ?",
    ),
    "duration": (
        "which was longer , the {place} or the {other} scene ?",
        "the {place} or the {other} scene : which was longer ?",
        "the {place} or the {other} : which scene lasted longer ?",
    ),
    "needle": (
        "which was the digit ?",
        "name the digit shown .",
        "the digit shown : what was it ?",
    ),
    "describe": ("describe the scenes shown .",),
}


def expand(template: str) -> tuple[str, ...]:
    """Return what a template stands for: each "[one|other|]" as each of its alternatives, all with all.

    >>> expand("[what|which] digit [|shown] ?")
    ('what digit ?', 'what digit shown ?', 'which digit ?', 'which digit shown ?')
    """
    # Text and alternatives in turn: re.split keeps what the group matched.
    parts = [
        part.split("|") if index % 2 else [part] for index, part in enumerate(re.split(r"\[([^\]]*)\]", template))
    ]
    return tuple(" ".join("".join(chosen).split()) for chosen in itertools.product(*parts))


HELD_OUT_WORDINGS = dict(_HELD_OUT)
TRAINING_WORDINGS = {
    type: tuple(
        dict.fromkeys(
            wording for template in templates for wording in expand(template) if wording not in _HELD_OUT[type]
        )
    )
    for type, templates in _TRAINING.items()
}
