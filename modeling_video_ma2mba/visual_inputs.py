"""`VisualInputs`: word embeddings with visual tokens in the places of their placeholders, segment by segment.

A segment encodes the frames it touches, with a VideoMamba tower the clips; what straddles a border is encoded in both
segments, so results never depend on where these end. In training the frames' pooled features (before the projector,
2 KB a token at CLIP-L in 16 bit) may wait on the host, so that the tower need not run again for its values.

Dims: B batch, T tokens, D model width, F frames, V visual tokens of a frame.
"""

import torch
from torch import nn

from .checkpoint_engine import RandomState
from .checkpoint_store import HostSlabs
from .gradient_sums import GradientSums
from .row_layout import Rows
from .segment_inputs import TextInputs
from .vision_features import FRAMES_PER_BATCH, PlaceholderSpans, encode_frames, frame_sequence


class VisualInputs(TextInputs):
    """Words, images and videos of a batch of rows: `inputs(i, j) -> (B, j-i, D)`.

    Args:
        model: the `VideoMa2mbaModel`: its tower, projector, embeddings and config are used.
        rows: the token rows. pixel_values, pixel_values_videos: as `VideoMa2mbaModel.forward` takes them.

    Attributes:
        frames_per_batch: frames that go through the tower at once, at least one clip.
        keep_features: keep pooled features on the host once they are computed.

    Raises:
        ValueError: placeholders and visual tokens differ in number, or there are pixels without `input_ids`.
    """

    def __init__(self, model: nn.Module, rows: Rows, pixel_values=None, pixel_values_videos=None):
        super().__init__(rows, model.get_input_embeddings())
        self.model = model
        self.config = model.config
        self.frames_per_batch = FRAMES_PER_BATCH
        self.keep_features = False
        self.host = HostSlabs(pinned=rows.device.type == "cuda")
        self.visuals = []  # (FrameSequence, PlaceholderSpans, {frame: its features (V, vision width) on the host})
        if rows.input_ids is None:
            if pixel_values is not None or pixel_values_videos is not None:
                raise ValueError("pixels need input_ids with placeholders; with inputs_embeds merge them yourself")
            return
        given = {"image": (pixel_values, "pixel_values"), "video": (pixel_values_videos, "pixel_values_videos")}
        ids = rows.input_ids.cpu()
        real = None if rows.layout is None else torch.arange(rows.length)[None] < rows.layout.lengths.cpu()[:, None]
        for kind, (pixels, name) in given.items():
            is_placeholder = ids == (self.config.image_token_id if kind == "image" else self.config.video_token_id)
            spans = PlaceholderSpans(is_placeholder if real is None else is_placeholder & real)
            frames = None if pixels is None else frame_sequence(self.config, pixels, name)
            tokens = 0 if frames is None else len(frames) * self.config.tokens_per_frame
            check_counts(kind, len(spans), tokens, self.config.tokens_per_frame)
            if tokens:
                self.visuals.append((frames, spans, {}))

    @property
    def num_frames(self) -> int:
        """Frames of all images and videos."""
        return sum(len(frames) for frames, _, _ in self.visuals)

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Return the input of positions start..stop."""
        embeds = super().__call__(start, stop)
        for visual in self.visuals:
            features = [
                self.model.multi_modal_projector(self._features(visual, *batch))
                for batch in self._batches(visual, start, stop)
            ]
            if features:
                mask = visual[1].is_placeholder[:, start:stop, None].to(embeds.device)
                embeds = embeds.masked_scatter(mask, torch.cat(features).to(embeds.dtype))
        if not self.visuals and start == 0 and torch.is_grad_enabled() and self._vision_needs_zeros():
            embeds = embeds + self.zero_from_vision(embeds)
        return embeds

    def borders(self) -> torch.Tensor | None:
        """Return the positions, rising, where a segment may end without cutting a clip in any row; None: all."""
        if self.config.frames_per_clip == 1 or not self.visuals:
            return None
        is_border = torch.ones(self.rows.length + 1, dtype=torch.bool)
        for frames, spans, _ in self.visuals:
            clips = frames.batches(0, len(frames), 1)
            begins = torch.zeros(len(frames) + 1, dtype=torch.bool)
            begins[[first for first, _, _ in clips] + [len(frames)]] = True
            tokens = spans.row_starts[:, None] + spans.before  # (B, T + 1) visual tokens before each position
            whole = tokens % self.config.tokens_per_frame == 0
            is_border &= (whole & begins[tokens // self.config.tokens_per_frame]).all(dim=0)
        is_border[[0, -1]] = True  # also where a row ends inside a clip
        return is_border.nonzero()[:, 0]

    def tower_calls(self, start: int, stop: int) -> int:
        """Return how often the tower runs for positions start..stop in training, when no features are kept."""
        if not self.visuals:
            return int(start == 0 and self._vision_needs_zeros())
        return sum(len(self._batches(visual, start, stop)) for visual in self.visuals)

    def trained(self) -> list[torch.Tensor]:
        """Return the tensors that `backward` finds gradients of."""
        if self.rows.input_ids is None:
            return super().trained()
        if any(getattr(video, "requires_grad", False) for frames, _, _ in self.visuals for video in frames.videos):
            raise ValueError(
                'frames require a gradient, which "ma-gc" does not find; detach them, or enable checkpointing with '
                '{"method": "layer"}'
            )
        return super().trained() + self._vision_parameters()

    def read_again(self) -> list[torch.Tensor]:
        """Return the tensors that are read in the forward and again in the backward, trained or not."""
        if not self.visuals:
            return super().read_again()
        weights = [*self.model.vision_tower.parameters(), *self.model.multi_modal_projector.parameters()]
        frames = [video for frames, _, _ in self.visuals for video in frames.videos if torch.is_tensor(video)]
        return [*super().read_again(), *weights, *frames]

    def backward(self, start: int, stop: int, gradient: torch.Tensor, sums: GradientSums, autocast) -> None:
        """Add the gradients of `trained()` to `sums`, given that of the output, (B, j-i, D).

        Frames go through the tower in micro-batches, each with its own graph, freed before the next.
        """
        trained = self._vision_parameters() if self.visuals else []
        text_gradient = gradient
        for visual in self.visuals:
            mask = visual[1].is_placeholder[:, start:stop].to(gradient.device)
            text_gradient = text_gradient.masked_fill(mask[..., None], 0)
        super().backward(start, stop, text_gradient, sums, autocast)
        del text_gradient
        for visual in self.visuals if trained else []:
            mask = visual[1].is_placeholder[:, start:stop].to(gradient.device)
            token_gradients = gradient[mask]  # (visual tokens of the segment, D), in the order they were put in
            first = 0
            for batch in self._batches(visual, start, stop):
                with torch.enable_grad(), autocast():
                    tokens = self.model.multi_modal_projector(self._features(visual, *batch))
                count = tokens.shape[0]
                part = token_gradients[first : first + count].to(tokens.dtype)
                first += count
                sums.add_all(trained, torch.autograd.grad(tokens, trained, part, allow_unused=True))
                del tokens

    def _vision_parameters(self) -> list[nn.Parameter]:
        model = self.model
        unused = set(model.unused_parameters())
        named = [*model.vision_tower.named_parameters(prefix="vision_tower")]
        used = [parameter for name, parameter in named if name not in unused]
        return [p for p in (*used, *model.multi_modal_projector.parameters()) if p.requires_grad]

    @property
    def _tower_is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.vision_tower.parameters())

    def _batches(self, visual, start: int, stop: int) -> list[tuple[int, int, int, slice]]:
        """Return micro-batches for positions start..stop, by row.

        Each is (first frame, end frame, frames of each clip, which of their tokens).
        """
        per_frame = self.config.tokens_per_frame
        frames, spans, _ = visual
        batches = []
        for first, end in spans.between(start, stop):
            held = frames.batches(first // per_frame, -(-end // per_frame), self.frames_per_batch)
            for i, j, clip in held if first < end else []:
                batches.append((i, j, clip, slice(max(first - i * per_frame, 0), end - i * per_frame)))
        return batches

    def _features(self, visual, first: int, end: int, clip: int, tokens: slice) -> torch.Tensor:
        """Return the pooled features of visual tokens of frames first..end, clips of `clip`, (n, vision width)."""
        frames, _, kept = visual
        projector = self.model.multi_modal_projector
        needs_graph = torch.is_grad_enabled() and self._tower_is_trained
        if not needs_graph and all(frame in kept for frame in range(first, end)):
            features = [kept[frame].to(projector.device, non_blocking=True) for frame in range(first, end)]
            return torch.cat(features)[tokens]
        before = RandomState(projector.device)
        pixels = frames.load(first, end, projector.device, self.model.vision_tower.dtype)
        features = encode_frames(
            self.model.vision_tower, pixels, self.config.feature_layers_run, self.config.spatial_pool_stride, clip
        )  # (F, V, vision width)
        features = features.to(projector.dtype)
        # With dropout a frame differs each time: only running it again repeats what a segment has seen of it.
        if self.keep_features and RandomState(projector.device).equals(before):
            for frame in range(first, end):
                if frame not in kept:
                    kept[frame] = self.host.like(features[frame - first])
                    kept[frame].copy_(features[frame - first].detach(), non_blocking=True)
        return features.flatten(0, 1)[tokens]

    def forget_features(self) -> None:
        """Free the features that wait on the host."""
        for _, _, kept in self.visuals:
            kept.clear()
        self.host = HostSlabs(self.host.pinned)

    def _vision_needs_zeros(self) -> bool:
        return self.model.training and self.rows.input_ids is not None

    def zero_from_vision(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return a zero that depends on tower and projector: a data-parallel rank without video has gradients too."""
        size = self.config.vision_config.image_size
        pixels = torch.zeros(1, 3, size, size, dtype=self.model.vision_tower.dtype, device=embeds.device)
        return self.model.encode_pixels(pixels).sum().to(embeds.dtype) * 0


def check_counts(kind: str, placeholders: int, tokens: int, tokens_per_frame: int) -> None:
    """Raise ValueError unless each placeholder of a prompt has its visual token."""
    if placeholders == tokens:
        return
    if tokens == 0:
        argument = "pixel_values" if kind == "image" else "pixel_values_videos"
        raise ValueError(f"the prompt has {placeholders} {kind} placeholders and no {kind} was given: pass {argument}")
    raise ValueError(
        f"the prompt has {placeholders} {kind} placeholders, the {kind}s have {tokens} visual tokens "
        f"({tokens // tokens_per_frame} frames of {tokens_per_frame}); let the processor write the prompt"
    )
