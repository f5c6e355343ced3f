"""What all recipes share: a yaml file of them, `--override`, and checks of fields that have the same meaning in each.

A recipe is a frozen dataclass; its first fields name it, the others are settings.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml

from modeling_video_ma2mba.configuration_videomamba import PRESETS, VideoMambaConfig

PRECISIONS = ("bf16", "fp32")
# Fields that are lists in yaml and tuples in a recipe.
_TUPLES = ("trains", "betas", "crop_scale", "crop_sides")


def read_recipes(file: str) -> dict[str, dict]:
    """Return the recipes of a yaml file of this folder, by name."""
    return yaml.safe_load((Path(__file__).parent / file).read_text(encoding="utf-8"))["recipes"]


def recipe_of(recipes: dict[str, dict], name: str) -> dict:
    """Return a recipe by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}; known are {', '.join(recipes)}")
    return recipes[name]


def settings_of(kind: type, names: int) -> list[str]:
    """Return the fields of a kind of recipe that can be overridden: all behind the first `names`."""
    return [field.name for field in dataclasses.fields(kind)][names:]


def overridden(settings: dict, overrides: list[str], known: list[str]) -> dict:
    """Return settings with `overrides` such as "learning_rate=2e-5".

    Raises:
        ValueError: one is not of that form, or of no known setting.
    """
    fields = settings | read_overrides(overrides)
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"a recipe has no field {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    return fields


def make_recipe(kind: type, title: str, overrides: list[str], **fields) -> Any:
    """Return the recipe of these fields.

    Raises:
        ValueError: a value is not allowed. title: what the message calls the recipe.
    """
    lists = {key: tuple(fields[key]) for key in _TUPLES if isinstance(fields.get(key), list)}
    try:
        return kind(**{**fields, **lists})
    except TypeError as error:  # a text where a number is compared
        raise ValueError(f"{title}, with {list(overrides)}: {error}") from error


def as_plain(recipe: Any) -> dict:
    """Return plain data, as it is written beside a run's output."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()}


def read_overrides(overrides: list[str]) -> dict:
    """Return what `--override` arguments such as "learning_rate=2e-5" set.

    Raises:
        ValueError: one is not of that form.
    """
    fields = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--override {override!r}: write it as field=value")
        fields[key.strip()] = _value(override, value)
    return fields


def _value(override: str, text: str):
    """Read a value as YAML does, and 2e-5 as the number everybody means by it."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--override {override!r}: the value is no YAML") from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def refuse(title: str, problems: list[str]) -> None:
    """Raise with all problems of a recipe, if there are any."""
    if problems:
        raise ValueError(f"{title}: {'; '.join(problems)}")


def type_problems(recipe: Any, numbers: tuple[str, ...], whole: tuple[str, ...] = ()) -> list[str]:
    """Return which fields are no numbers, or no whole numbers; None is one where the field says so."""
    problems = []
    optional = {field.name for field in dataclasses.fields(recipe) if type(None) in get_args(field.type)}
    for name in (*numbers, *whole):
        value, kinds = getattr(recipe, name), int if name in whole else (int, float)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds):
            problems.append(f"{name}={value!r} must be a {'whole ' * (name in whole)}number")
    return problems


def bound_problems(
    recipe: Any, positive: tuple[str, ...], shares: tuple[str, ...], not_negative: tuple[str, ...]
) -> list[str]:
    """Return which numbers are not above 0 (or None), not from 0 to 1, or below 0."""
    problems = []
    for name in positive:
        if getattr(recipe, name) is not None and not 0 < getattr(recipe, name) < math.inf:
            problems.append(f"{name}={getattr(recipe, name)} must be more than 0")
    for name in shares:
        if not 0 <= getattr(recipe, name) <= 1:
            problems.append(f"{name}={getattr(recipe, name)} must be between 0 and 1")
    for name in not_negative:
        if not 0 <= getattr(recipe, name) < math.inf:
            problems.append(f"{name}={getattr(recipe, name)} must be 0 or more")
    return problems


def training_problems(recipe: Any) -> list[str]:
    """Return what is wrong with `betas`, `precision` and `checkpointing`."""
    problems = []
    if not isinstance(recipe.checkpointing, (dict, type(None))):
        problems.append(f"checkpointing={recipe.checkpointing!r} must be settings, such as {{}}, or null")
    if len(recipe.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.betas):
        problems.append(f"betas={list(recipe.betas)} must be two numbers from 0 to below 1")
    if recipe.precision not in PRECISIONS:
        problems.append(f"precision={recipe.precision!r} must be one of {', '.join(PRECISIONS)}")
    return problems


def videomamba_problems(recipe: Any) -> list[str]:
    """Return what is wrong with `warmup_epochs`, `crop_scale` and `size`, of recipes that train a VideoMamba."""
    problems, scale = [], recipe.crop_scale
    if not 0 <= recipe.warmup_epochs < recipe.epochs:
        problems.append(f"warmup_epochs={recipe.warmup_epochs} must be 0 or more and less than epochs={recipe.epochs}")
    if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
        problems.append(f"crop_scale={list(scale)} must be two shares, above 0 and rising to at most 1, or null")
    return problems + config_problems(recipe, "size", PRESETS, VideoMambaConfig)


def config_problems(recipe: Any, name: str, presets: Iterable[str], kind: type) -> list[str]:
    """Return what is wrong with a setting that is the name of a preset, or fields of a kind of configuration."""
    value = getattr(recipe, name)
    known = {field.name for field in dataclasses.fields(kind)}
    if value in list(presets) or (isinstance(value, dict) and set(value) <= known):
        return []
    unknown = f", which has no {sorted(set(value) - known)[0]}" if isinstance(value, dict) else ""
    return [f"{name}={value!r} must be one of {', '.join(presets)}, or fields of {kind.__name__}{unknown}"]


def vision_config_fields(recipe: Any) -> dict:
    """Return the fields of the `VideoMambaConfig` that a recipe trains."""
    sizes = PRESETS[recipe.size] if isinstance(recipe.size, str) else recipe.size
    own = {"num_frames": recipe.frames, "image_size": recipe.image_size, "drop_path_rate": recipe.drop_path}
    return {**sizes, **own}
