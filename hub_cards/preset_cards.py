"""The cards of the named sizes, as they begin: joined or new, and not trained.

python hub_cards/preset_cards.py           # write hub_cards/presets/*.md again
"""

from pathlib import Path

from modeling_video_ma2mba import (
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
    VideoMambaConfig,
    VideoMambaForVideoClassification,
)
from modeling_video_ma2mba.hub_cards.card import make_card, untrained

FOLDER = Path(__file__).parent / "presets"
_VIDEOMAMBA = (
    "**It is not trained.** Weights of this shape come from the published files (`convert_videomamba`), or from\n"
    "training (`train/videomamba.py`); then `video-ma2mba card` writes their own card."
)
# Kinetics-400 in clips of 8 frames: the setting of most published files.
_FRAMES, _CLASSES = 8, 400


def preset_cards() -> dict[str, str]:
    """Return file name -> card, for 0.7b, 1.8b, 3.1b and the four sizes of VideoMamba."""
    cards = {}
    for size in ("0.7b", "1.8b", "3.1b"):
        name = f"video-ma2mba-{size}"
        cards[f"{name}.md"] = make_card(
            VideoMa2mbaForConditionalGeneration,
            VideoMa2mbaConfig.preset(size),
            name,
            "other",
            model=size,
            told=untrained(),
        )
    for size in ("ti", "s", "m", "b"):
        config = VideoMambaConfig.preset(size, num_frames=_FRAMES, num_labels=_CLASSES)
        name = f"videomamba-{size}"
        told = untrained(_VIDEOMAMBA)
        cards[f"{name}.md"] = make_card(VideoMambaForVideoClassification, config, name, "other", model=size, told=told)
    return cards


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in preset_cards().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
        print(FOLDER / file)
