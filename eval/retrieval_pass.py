"""`RetrievalPass`: reads all videos and texts once, compares them, and judges the best candidates again.

Everything that took time is a file in the run's folder, written whole or not at all: a run that was stopped goes on
behind the last one. It scores nothing (`retrieval_scores.py`).

Dims: V videos, N texts, F frames, L vision tokens of a video, D vision width, T text tokens, W text width,
P projection width, K candidates.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modeling_video_ma2mba.eval.retrieval_scores import best_candidates
from modeling_video_ma2mba.modeling_videomamba_multimodal import VideoMambaMultiModalModel
from modeling_video_ma2mba.processing.processing_videomamba_multimodal import VideoMambaMultiModalProcessor
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.text_video_losses import similarity
from modeling_video_ma2mba.train.clip_views import test_views
from modeling_video_ma2mba.train.read_captions import CaptionedClip
from modeling_video_ma2mba.train.samples import Media

VIDEOS_PER_FILE, TEXTS_PER_FILE, QUERIES_PER_FILE = 16, 256, 16
# A matrix of similarities of this many numbers takes 4 GB; ActivityNet's has 24 million.
MAX_COMPARISONS = 10**9


@dataclass(frozen=True)
class _Clips(Dataset):
    """The frames of each video (F, 3, S, S) uint8, or the reason why there are none."""

    media: Sequence[Media]
    processor: VideoMambaMultiModalProcessor

    def __len__(self) -> int:
        return len(self.media)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            return torch.from_numpy(test_views(self.media[index], self.processor.image_processor)[0])
        except (VideoReadError, OSError, ValueError) as error:
            return str(error) or type(error).__name__


class RetrievalPass:
    """One run over the videos and texts of a test.

    Args:
        model: in eval mode, on its device. processor: of the same folder.
        clips: videos with captions, at least two. folder: of the run; it exists.
        max_text_tokens: longer texts are cut.
        rerank: candidates of each query that are judged again; 0: none.
        at_once: videos, and pairs times 8, in one batch. workers: processes that decode.

    Attributes:
        texts: all captions, (N,). video_of_text: (N,) int64.
        not_read: reasons, by the number of the video.

    Raises:
        ValueError: pictures, too few videos, more than fits in memory or on the disk.
    """

    def __init__(
        self,
        model: VideoMambaMultiModalModel,
        processor: VideoMambaMultiModalProcessor,
        clips: Sequence[CaptionedClip],
        folder: Path,
        *,
        max_text_tokens: int,
        rerank: int,
        at_once: int = 8,
        workers: int = 0,
    ):
        self.model, self.processor, self.clips, self.folder = model, processor, clips, folder
        self.rerank, self.at_once, self.workers = rerank, at_once, workers
        if pictures := [clip.id for clip in clips if clip.medium.kind != "video"]:
            raise ValueError(f"{pictures[0]} is a picture; retrieval is tested on videos")
        if len(clips) < 2:
            raise ValueError(f"{len(clips)} videos: retrieval needs at least two to choose from")
        self.texts = [caption for clip in clips for caption in clip.captions]
        self.video_of_text = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
        if len(clips) * len(self.texts) > MAX_COMPARISONS:
            raise ValueError(
                f"{len(clips):,} videos and {len(self.texts):,} texts are {len(clips) * len(self.texts):,} "
                f"comparisons, more than {MAX_COMPARISONS:,}: test on fewer, with --limit"
            )
        limit = min(max_text_tokens, model.config.text_config.max_position_embeddings)
        tokens = processor.texts(self.texts, limit)
        self.input_ids, self.attention_mask = (
            torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask")
        )
        self.not_read: dict[int, str] = {}
        self._check_disk()

    def _check_disk(self) -> None:
        vision, text = self.model.config.vision_config, self.model.config.text_config
        size = torch.finfo(self.model.dtype).bits // 8
        needed = len(self.clips) * (vision.num_tokens - 1) * vision.hidden_size * size
        needed += self.input_ids.numel() * text.hidden_size * size
        free = shutil.disk_usage(self.folder).free
        have = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        if self.rerank and needed > free + have:
            raise ValueError(
                f"{self.folder}: the features of {len(self.clips):,} videos take {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free: choose another --output, or --rerank 0"
            )

    @torch.no_grad()
    def run(self) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Return similarities and judgements.

        Returns:
            Cosines (V, N) float32, -inf for videos that cannot be read; by direction ("text_to_video",
            "video_to_text"; empty without re-ranking) the candidates (queries, K) int64 and what they were judged,
            the logit for a match, (queries, K) float32.
        """
        videos = self._read_videos()
        texts = self._files("texts", len(self.texts), TEXTS_PER_FILE, self._encode_texts)
        vision_embeds = torch.cat([load_file(path)["embeds"] for path in videos])
        text_embeds = torch.cat([load_file(path)["embeds"] for path in texts])
        cosines = similarity(vision_embeds.float(), text_embeds.float()).numpy()
        cosines[list(self.not_read)] = -np.inf
        if not self.rerank:
            return cosines, {}
        vision, words = _Rows(videos, VIDEOS_PER_FILE, "tokens"), _Rows(texts, TEXTS_PER_FILE, "texts")
        judged = {}
        readable = len(self.clips) - len(self.not_read)
        for direction, scores, most in (("text_to_video", cosines.T, readable), ("video_to_text", cosines, None)):
            candidates = best_candidates(scores, min(self.rerank, most or scores.shape[1]))

            def judge(numbers: range, candidates=candidates, is_text_query=direction == "text_to_video") -> dict:
                rows = np.repeat(np.array(numbers), candidates.shape[1])
                others = candidates[numbers.start : numbers.stop].reshape(-1)
                pairs = (rows, others) if is_text_query else (others, rows)
                return {"judged": self._judge(words, vision, *pairs).view(len(numbers), -1)}

            files = self._files(direction, len(scores), QUERIES_PER_FILE, judge)
            judged[direction] = candidates, torch.cat([load_file(path)["judged"] for path in files]).numpy()
        return cosines, judged

    def _files(self, name: str, count: int, per_file: int, make: Callable[[range], dict]) -> list[Path]:
        """Return the files of `count` things, making those that are not there yet."""
        parts = [range(first, min(first + per_file, count)) for first in range(0, count, per_file)]
        paths = [self.folder / f"{name}-{part.start:07d}.safetensors" for part in parts]
        for path, part in zip(paths, tqdm(parts, desc=name.replace("_", " "), unit=" files", disable=None)):
            if not path.is_file():
                _save(make(part), path)
        return paths

    def _read_videos(self) -> list[Path]:
        """Encode all videos that have no file yet; note those that cannot be read."""
        count, name = len(self.clips), "videos-{:07d}.safetensors"
        parts = [range(first, min(first + VIDEOS_PER_FILE, count)) for first in range(0, count, VIDEOS_PER_FILE)]
        paths = [self.folder / name.format(part.start) for part in parts]
        missing = [part for part, path in zip(parts, paths) if not path.is_file()]
        media = [self.clips[number].medium for part in missing for number in part]
        loader = iter(DataLoader(_Clips(media, self.processor), batch_size=None, num_workers=self.workers))
        with tqdm(total=count, initial=count - len(media), desc="videos", unit=" videos", disable=None) as bar:
            for part in missing:
                read, problems = [], {}
                for number in part:
                    given = next(loader)
                    read.append(torch.zeros(0) if isinstance(given, str) else given)
                    problems |= {str(number): given} if isinstance(given, str) else {}
                    bar.update()
                _save(self._encode_videos(read), self.folder / name.format(part.start), problems)
        for path in paths:
            with safe_open(path, "pt") as file:
                self.not_read |= {int(number): reason for number, reason in (file.metadata() or {}).items()}
        if len(self.not_read) > len(self.clips) - 2:
            number, reason = next(iter(self.not_read.items()))
            raise ValueError(
                f"{len(self.not_read)} of {len(self.clips)} videos cannot be read; {self.clips[number].id}: {reason}"
            )
        return paths

    def _encode_videos(self, videos: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return `embeds` (n, F, P) and, for re-ranking, `tokens` (n, L, D); 0 for videos that were not read."""
        config = self.model.config
        vision = config.vision_config
        found = {"embeds": torch.zeros(len(videos), vision.num_frames, config.projection_size, dtype=self.model.dtype)}
        if self.rerank:
            found["tokens"] = torch.zeros(
                len(videos), vision.num_tokens - 1, vision.hidden_size, dtype=self.model.dtype
            )
        numbers = [number for number, video in enumerate(videos) if len(video)]
        for first in range(0, len(numbers), self.at_once):
            own = numbers[first : first + self.at_once]
            given = self.model.encode_vision(pixel_values_videos=torch.stack([videos[number] for number in own]))
            for name, one in zip(("embeds", "tokens"), given):
                if name in found:
                    found[name][own] = one.cpu()
        return found

    def _encode_texts(self, numbers: range) -> dict[str, torch.Tensor]:
        """Return `embeds` (n, P) and, for re-ranking, `texts` (n, T, W)."""
        found = []
        for first in range(numbers.start, numbers.stop, 8 * self.at_once):
            own = slice(first, min(first + 8 * self.at_once, numbers.stop))
            device = self.model.device
            encoded = self.model.encode_text(self.input_ids[own].to(device), self.attention_mask[own].to(device))
            found.append([one.cpu() for one in encoded])
        embeds, texts = (torch.cat(parts).contiguous() for parts in zip(*found))
        return {"embeds": embeds, "texts": texts} if self.rerank else {"embeds": embeds}

    def _judge(self, words: "_Rows", vision: "_Rows", texts: np.ndarray, videos: np.ndarray) -> torch.Tensor:
        """Return the logits for a match of pairs of text and video, (pairs,) float32."""
        found, device = [], self.model.device
        for first in range(0, len(texts), 8 * self.at_once):
            own = slice(first, first + 8 * self.at_once)
            mask = self.attention_mask[torch.from_numpy(texts[own])].to(device)
            given = words.get(texts[own]).to(device), mask, vision.get(videos[own]).to(device)
            found.append(self.model.match(*given)[:, 1].float().cpu())
        return torch.cat(found)


class _Rows:
    """Rows of one tensor that is spread over files, read as they are asked for."""

    def __init__(self, paths: list[Path], per_file: int, name: str):
        self.files = [safe_open(path, "pt").__enter__() for path in paths]
        self.slices = [file.get_slice(name) for file in self.files]
        self.per_file = per_file

    def get(self, numbers: np.ndarray) -> torch.Tensor:
        """Return rows (n, ...), each read once."""
        chosen, back = np.unique(numbers, return_inverse=True)
        rows = [self.slices[n // self.per_file][n % self.per_file : n % self.per_file + 1] for n in chosen.tolist()]
        return torch.cat(rows)[torch.from_numpy(back.reshape(-1))]


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    part.replace(path)
