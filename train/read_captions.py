"""Read videos and images with captions: what the multi-modal VideoMamba is trained on and tested with.

    captions         a list of {"video" or "image": path, "caption": text or texts}       WebVid, CC3M, COCO, ...
    msrvtt           the same: msrvtt_ret_train9k.json, msrvtt_ret_test1k.json
    msrvtt-original  {"videos": [{"video_id"}], "sentences": [{"video_id", "caption"}]}, as it was first published
    didemo           the same as captions, a list is one paragraph, first 30 s of a video: didemo_ret_test.json
    activitynet      the same, a list is one paragraph: anet_ret_val.json (which is the test set)
    lsmdc            the same, videos in folders: lsmdc_ret_test_1000.json
    msvd             the same, many captions of one video: msvd_ret_test.json

Rows of one video are one: every caption of it belongs to it. Lists of captions are several texts, each of which should
be found, but for paragraphs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from modeling_video_ma2mba.processing.processing_videomamba_multimodal import clean_caption
from modeling_video_ma2mba.train.annotation_files import (
    Row,
    id_of,
    json_rows,
    list_of,
    read_json,
    samples_from_rows,
    text_of,
)
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.samples import Media

# Texts of one video; the largest sets have some dozens.
MAX_CAPTIONS = 1000


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """A video or an image with its captions, at least one.

    Attributes:
        id, source: as the report names it, and the reader.
    """

    id: str
    source: str
    medium: Media
    captions: tuple[str, ...]

    @property
    def media(self) -> tuple[Media]:
        return (self.medium,)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSet:
    """How a set of captioned videos is read and tested (arXiv 2403.06977, section 4.3).

    Attributes:
        is_paragraph: a list of captions is one text.
        end: seconds of a video that are looked at; None: all.
        max_text_tokens: in a test.
        read: rows of an annotation file.
    """

    is_paragraph: bool = False
    end: float | None = None
    max_text_tokens: int = 32
    read: Callable[[Path], Iterator[Row]] = lambda path: json_rows(path, ["caption"])


def _original_rows(path: Path) -> Iterator[Row]:
    """Yield a row for each video of MSR-VTT's own file, with all its captions."""
    content = read_json(path)
    parts = [content.get(name) if isinstance(content, dict) else None for name in ("videos", "sentences")]
    if not all(isinstance(part, list) for part in parts):
        raise ValueError(f"{path}: has no lists videos and sentences; is it MSR-VTT's own file? Else use msrvtt")
    captions: dict[str, list] = {}
    for sentence in parts[1]:
        if isinstance(sentence, dict) and isinstance(sentence.get("video_id"), str):
            captions.setdefault(sentence["video_id"], []).append(sentence.get("caption"))
    for number, video in enumerate(parts[0], start=1):
        try:
            if not isinstance(video, dict):
                raise BadRow("row is not an object")
            name = id_of(video, "video_id")
            row = {"video": f"{name}.mp4", "caption": captions.get(name, [])}
        except BadRow as bad:
            row = bad
        yield number, row


CAPTION_SETS = {
    "captions": CaptionSet(),
    "msrvtt": CaptionSet(),
    "msrvtt-original": CaptionSet(read=_original_rows),
    "didemo": CaptionSet(is_paragraph=True, end=30.0, max_text_tokens=64),
    "activitynet": CaptionSet(is_paragraph=True, max_text_tokens=150),
    "lsmdc": CaptionSet(max_text_tokens=96),
    "msvd": CaptionSet(max_text_tokens=64),
}


def read_captions(path: Path, media: MediaIndex, report: DataReport, name: str) -> Iterator[CaptionedClip]:
    """Yield a captioned clip for each row.

    Args:
        name: one of `CAPTION_SETS`.
    """
    rule = CAPTION_SETS[name]

    def make(number: int, row: dict) -> CaptionedClip:
        kind = "video" if "video" in row else "image"
        file = text_of(row, kind)
        given = row["caption"]
        captions = list_of(row, "caption", str) if isinstance(given, list) else [given]
        if not 0 < len(captions) <= MAX_CAPTIONS:
            raise BadRow("wrong number of captions", f"{len(captions)}, of 1 to {MAX_CAPTIONS}")
        captions = [text_of({"caption": caption}, "caption") for caption in captions]
        if rule.is_paragraph:
            captions = [" ".join(captions)]
        if not all(map(clean_caption, captions)):
            raise BadRow("caption without a word", min(captions, key=lambda caption: len(clean_caption(caption)))[:80])
        end = rule.end if kind == "video" else None
        medium = Media(kind=kind, path=media.find(file, kind), end=end)
        return CaptionedClip(file, name, medium, tuple(captions))

    return samples_from_rows(path, rule.read(path), make, report)


def read_caption_data(argument: str, report: DataReport) -> list[CaptionedClip]:
    """Return the clips of a `--data` argument SET:ANNOTATIONS,MEDIA,MEDIA, one for each video, in order.

    Without MEDIA it is the folder of the annotations.

    Raises:
        ValueError: an unknown set, a missing file or folder, a file that cannot be read.
    """
    name, annotations, folders = parse_caption_argument(argument)
    media = MediaIndex(folders or [annotations.parent])
    rows = read_captions(annotations, media, report, name)
    return joined(tqdm(rows, desc=f"reading {annotations.name}", unit=" clips", disable=None, leave=False))


def parse_caption_argument(argument: str) -> tuple[str, Path, list[str]]:
    """Return set, annotation file and media folders of a `--data` argument; raises as `read_caption_data`."""
    head, *folders = [part.strip() for part in argument.split(",")]
    name, colon, rest = head.partition(":")
    if not colon or name not in CAPTION_SETS:
        raise ValueError(
            f"--data {argument}: must begin with one of {', '.join(f'{known}:' for known in CAPTION_SETS)} as in "
            "msrvtt:msrvtt_ret_test1k.json,videos"
        )
    if not rest or not all(folders):
        raise ValueError(f"--data {argument}: has an empty path; write SET:ANNOTATIONS,MEDIA or SET:ANNOTATIONS")
    if not Path(rest).is_file():
        raise ValueError(f"--data {argument}: there is no file {rest}")
    return name, Path(rest), folders


def joined(clips: Sequence[CaptionedClip] | Iterator[CaptionedClip]) -> list[CaptionedClip]:
    """Return one clip for each video, where it came first, with all captions; the same caption counts once."""
    found: dict[Media, CaptionedClip] = {}
    captions: dict[Media, dict[str, None]] = {}
    for clip in clips:
        found.setdefault(clip.medium, clip)
        captions.setdefault(clip.medium, {}).update(dict.fromkeys(clip.captions))
    return [CaptionedClip(clip.id, clip.source, medium, tuple(captions[medium])) for medium, clip in found.items()]
