"""The README's first training: the shipped model learns questions about a user's own folder of videos."""

import json

import numpy as np

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration, VideoMa2mbaProcessor
from modeling_video_ma2mba.train.run_stage import main
from modeling_video_ma2mba.train.synthetic_video import write_video

# Words that the shipped model does not know are learned too.
WINNERS = {"rovers": (200, 30, 30), "wanderers": (30, 30, 200), "athletic": (30, 160, 60)}


def test_the_shipped_model_learns_a_folder_of_videos(tmp_path):
    rows = []
    for i, (winner, colour) in enumerate(WINNERS.items()):
        write_video(tmp_path / f"{i}.mp4", np.full((30, 64, 96, 3), colour, dtype=np.uint8), fps=10)
        turns = [{"from": "human", "value": "<image>\nwho wins ?"}, {"from": "gpt", "value": winner}]
        rows.append({"id": i, "video": f"{i}.mp4", "conversations": turns})
    (tmp_path / "questions.json").write_text(json.dumps(rows))

    words = ["--recipe", "tiny", "--data", str(tmp_path / "questions.json"), "--output", str(tmp_path / "mine")]
    overrides = ["--override", "max_steps=60", "--override", "global_batch_size=3"]
    done = main("2", [*words, *overrides, "--device", "cpu", "--workers", "0", "--report-to", "none"])
    assert done == 0
    log = json.loads((tmp_path / "mine" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 60 and np.mean(losses[-5:]) < 0.1 * losses[0]

    model = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path / "mine")
    processor = VideoMa2mbaProcessor.from_pretrained(tmp_path / "mine")
    for i, winner in enumerate(WINNERS):
        memory = model.watch(tmp_path / f"{i}.mp4", processor=processor, progress=False)
        assert model.ask(memory, "who wins ?", processor=processor) == winner
