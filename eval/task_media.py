"""Where the media of a benchmark lie below its folder.

It looks at names, at frame rates, and into subtitle files. Names come from annotations that nobody checked: what would
lead out of the folder is refused.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from modeling_video_ma2mba.eval.subtitles import read_longvideobench, read_srt
from modeling_video_ma2mba.eval.task_readers import Part, Question
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import probe
from modeling_video_ma2mba.train.data_report import BadRow
from modeling_video_ma2mba.train.media_index import NOT_FOUND, REFUSED, MediaIndex, name_without_ending

# Tried in turn; more than one of them may lie beside each other.
ENDINGS = (".mp4", ".MP4", ".webm", ".mkv", ".avi", ".mov")


class TaskMedia:
    """The media below a benchmark's folder.

    Args:
        folder: with the media.
        roots: folders in it, from which the folders of the parts start.
        anywhere: names are unique in the benchmark, so that a file may lie in any folder.
    """

    def __init__(self, folder: Path, roots: Sequence[str], anywhere: bool) -> None:
        self.folder = folder
        self._index = MediaIndex([folder])
        self._roots = roots
        self._anywhere = anywhere
        # Each file is read once, though many questions are about one video.
        self.read_longvideobench = cache(read_longvideobench)
        self.read_srt = cache(read_srt)
        # Of a video that cannot be read None: watching it will say why.
        self.native_fps = cache(_native_fps)

    def find(self, question: Question, part: Part) -> tuple[Path, bool]:
        """Return the video, or its folder of pictures, and whether it is cut to the question's bounds already.

        Raises:
            BadRow: refused, missing or empty.
        """
        for folders, is_cut in ((part.folders, False), (part.cut, True)):
            for place in (os.path.normpath(os.path.join(root, folder)) for folder in folders for root in self._roots):
                for name in question.videos:
                    if part.frame_rate is not None and not is_cut:
                        if os.path.isdir(os.path.join(self.folder, place, name)):
                            return self._index.find_frames(f"{place}/{name}"), False
                        continue
                    bare = name_without_ending(name)
                    for file in (name, *(f"{bare}{ending}" for ending in ENDINGS)):
                        if os.path.isfile(os.path.join(self.folder, place, file)):
                            return self._index.find(f"{place}/{file}", "video"), is_cut
        if not self._anywhere:
            raise BadRow(NOT_FOUND, f"{question.videos[0]} in {', '.join((*part.folders, *part.cut))}")
        return self._find_anywhere(question), False

    def _find_anywhere(self, question: Question) -> Path:
        for name in question.videos[:-1]:
            try:
                return self._index.find(name, "video")
            except BadRow as bad:
                if bad.reason != NOT_FOUND:
                    raise
        return self._index.find(question.videos[-1], "video")

    def subtitle_file(self, folder: str, name: str) -> Path | None:
        """Return a subtitle file, None if there is none; raises BadRow for a name that leads out of the folder."""
        path = (self.folder / folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise BadRow(REFUSED, f"{name[:80]} leads out of the folder of the subtitles")
        return path if path.is_file() else None


def _native_fps(video: Path) -> float | None:
    try:
        return probe(video).fps
    except VideoReadError:
        return None
