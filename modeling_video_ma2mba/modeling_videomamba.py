"""VideoMamba (arXiv 2403.06977): bidirectional Mamba-1 over the patches of an image or a clip.

- parameter names are those of the published checkpoints, under the prefix `videomamba.` in the models with a head
- every block reads the tokens forwards and backwards, in the order its scan names (`scan_orders.py`), on every backend
- there is no attention, no MLP and no padding: the clips of a batch have equal length
- A, D, step biases, norm statistics, states and the residual stream are fp32 or better

Dims: B batch, F frames, T frames after the patch embedding, S patches of a frame, L = 1 + T S tokens, D model width,
E mixer width, N state size, R width of the step size, W convolution width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutputWithNoAttention
from transformers.utils.generic import can_return_tuple

from .configuration_videomamba import VideoMambaConfig
from .fp32_parameters import KeepsFp32
from .hub_folder import code_in_config, own_class
from .kernels import Backend, at_least_fp32, causal_conv, choose_backend, selective_scan, selective_scan_rows
from .norms import Ma2mbaRMSNorm
from .scan_orders import Direction, block_scans, directions, temporal_first, undo
from .vision_features import FrameSequence


class VideoMambaStepProjection(nn.Linear):
    """R -> E step sizes. Its bias is left to the scan, which adds it in fp32."""

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        """(B, L, R) -> (B, L, E), without the bias."""
        return F.linear(low, self.weight)


class VideoMambaMixer(KeepsFp32):
    """The bidirectional Mamba-1 mixer (section 3.2): projections shared by all directions, the rest for each its own.

    Args:
        scan: one of `scan_orders.SCANS`.
    """

    def __init__(self, config: VideoMambaConfig, scan: str):
        super().__init__()
        self.config = config
        self.directions = directions(scan, config.bidirectional)
        self.suffixes = list(dict.fromkeys(d.parameters for d in self.directions))  # each once
        inner, size, rank = config.intermediate_size, config.state_size, config.time_step_rank
        fp32 = at_least_fp32(torch.get_default_dtype())
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)  # x, then the gate
        for suffix in self.suffixes:
            # The convolution is a container for the weights, under the checkpoint's name; `causal_conv` reads them.
            conv = nn.Conv1d(inner, inner, config.conv_kernel, groups=inner)
            step = VideoMambaStepProjection(rank, inner)
            step.bias = nn.Parameter(step.bias.detach().to(fp32))
            self.add_module(f"conv1d{suffix}", conv)
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * size, bias=False))  # step, B, C
            self.add_module(f"dt_proj{suffix}", step)
            self.register_parameter(f"A{suffix}_log", nn.Parameter(torch.empty(inner, size, dtype=fp32)))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.empty(inner, dtype=fp32)))
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self.fp32_parameters = tuple(
            name.format(suffix) for suffix in self.suffixes for name in ("A{}_log", "D{}", "dt_proj{}.bias")
        )

    def forward(self, hidden: torch.Tensor, order: torch.Tensor | None, backend: Backend) -> torch.Tensor:
        """Mix the tokens `hidden` (B, L, D), stored frame after frame behind the class token.

        Args:
            order: (L,) the temporal-first order; None where spatial-first is the same or no direction needs it.
        """
        x, gate = self.in_proj(hidden).chunk(2, dim=-1)  # (B, L, D) -> (B, L, E) each
        place = None if order is None else undo(order)
        y = None
        for direction in self.directions:
            own = _read(x, direction, order)
            rows = self._rows_at_once(own, backend)
            read = torch.cat([self._scan(part, direction.parameters, backend) for part in own.split(rows)])
            stored = _store(read, direction, place)
            y = stored if y is None else y + stored  # the directions are added, without a factor
        return self.out_proj(y * F.silu(gate))

    def _scan(self, x, suffix, backend):
        """Run convolution and scan of one direction over tokens in the order they are read: (B, L, E) -> (B, L, E)."""
        config = self.config
        conv, dt_proj = getattr(self, f"conv1d{suffix}"), getattr(self, f"dt_proj{suffix}")
        before = x.new_zeros(x.shape[0], config.conv_kernel - 1, x.shape[2])  # (B, W-1, E)
        u = causal_conv(x, conv.weight, conv.bias, before, backend)
        low, B, C = getattr(self, f"x_proj{suffix}")(u).split(
            [config.time_step_rank, config.state_size, config.state_size], dim=-1
        )  # (B, L, R), (B, L, N), (B, L, N)
        A = -torch.exp(getattr(self, f"A{suffix}_log"))
        return selective_scan(u, dt_proj(low), A, B, C, getattr(self, f"D{suffix}"), dt_proj.bias, backend)

    def _rows_at_once(self, x, backend):
        """Return how many rows of the batch convolution and scan take at once: kernels have 32-bit offsets."""
        if backend.scan == "torch" and backend.conv == "torch":
            return x.shape[0]
        return max(1, min(x.shape[0], selective_scan_rows(x.shape[1], x.shape[2], self.config.state_size)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the published training does: A = 1..N, D = 1, step biases 0, so that steps begin at 0.69.

        The public implementation sets Mamba's step biases first and overwrites them with 0 later; models were trained
        from there.
        """
        config = self.config
        for suffix in self.suffixes:
            decay = torch.arange(1, config.state_size + 1, dtype=torch.float32, device=self.out_proj.weight.device)
            init.copy_(getattr(self, f"A{suffix}_log"), decay.log().expand(config.intermediate_size, -1))
            init.ones_(getattr(self, f"D{suffix}"))
            conv = getattr(self, f"conv1d{suffix}")
            init.uniform_(conv.weight, -(config.conv_kernel**-0.5), config.conv_kernel**-0.5)
            init.uniform_(conv.bias, -(config.conv_kernel**-0.5), config.conv_kernel**-0.5)
        bound = (config.intermediate_size * config.num_hidden_layers) ** -0.5
        init.uniform_(self.out_proj.weight, -bound, bound)


def _read(x: torch.Tensor, direction: Direction, order: torch.Tensor | None) -> torch.Tensor:
    """Put stored tokens (B, L, E) into the order a direction reads them."""
    if direction.temporal_first and order is not None:
        x = x.index_select(1, order)
    return x.flip(1) if direction.backwards else x


def _store(y: torch.Tensor, direction: Direction, place: torch.Tensor | None) -> torch.Tensor:
    """Put tokens (B, L, E) from the order a direction reads them back to the stored one."""
    y = y.flip(1) if direction.backwards else y
    return y.index_select(1, place) if direction.temporal_first and place is not None else y


class VideoMambaBlock(GradientCheckpointingLayer):
    """Norm, mixer and residual; in training the mixer is left out for some samples (stochastic depth)."""

    def __init__(self, config: VideoMambaConfig, scan: str, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate
        self.norm = Ma2mbaRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = VideoMambaMixer(config, scan)

    def forward(self, hidden: torch.Tensor, order: torch.Tensor | None, backend: Backend) -> torch.Tensor:
        """(B, L, D) residual stream in fp32 or better -> the same."""
        y = self.mixer(self.norm(hidden), order, backend)
        if self.training and self.drop_rate > 0:
            keep = 1 - self.drop_rate
            kept = torch.rand(y.shape[0], 1, 1, device=y.device) < keep
            y = y * (kept.to(hidden.dtype) / keep)
        return hidden + y


class VideoMambaPatchEmbedding(nn.Module):
    """Non-overlapping patches of `tubelet_size` frames, `patch_size` squared (section 3.2, equation 6)."""

    def __init__(self, config: VideoMambaConfig):
        super().__init__()
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, F, 3, H, W) -> (B, T, S, D), patches left to right and top to bottom."""
        return self.proj(pixels.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # (B, D, T, h, w) before


class VideoMambaPreTrainedModel(PreTrainedModel):
    config: VideoMambaConfig
    base_model_prefix = "videomamba"
    main_input_name = "pixel_values_videos"
    input_modalities = ("image", "video")
    supports_gradient_checkpointing = True
    _no_split_modules = ("VideoMambaBlock",)
    _keep_in_fp32_modules_strict = tuple(
        name.format(suffix) for suffix in ("", "_b", "_t", "_tb") for name in ("A{}_log", "D{}", "dt_proj{}.bias")
    )
    # The loss is a mean over the batch; the Trainer divides by accumulation steps.
    accepts_loss_kwargs = False

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers' own; the folder also carries the code, for `trust_remote_code=True` elsewhere."""
        with code_in_config(self.config), own_class(self):
            super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Ma2mbaRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.LayerNorm):  # of what stands behind the encoder
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VideoMambaMixer):
            module.reset_parameters()
        elif isinstance(module, VideoMambaPatchEmbedding):
            bound = math.prod(module.proj.weight.shape[1:]) ** -0.5
            init.uniform_(module.proj.weight, -bound, bound)
            init.uniform_(module.proj.bias, -bound, bound)
        elif isinstance(module, VideoMambaModel):
            init.zeros_(module.cls_token)
            init.trunc_normal_(module.pos_embed, std=std)
            if module.temporal_pos_embedding is not None:
                init.zeros_(module.temporal_pos_embedding)


class VideoMambaModel(VideoMambaPreTrainedModel):
    """The encoder: patches and class token in, a feature for each out.

    Example:

    ```python
    >>> import torch
    >>> from modeling_video_ma2mba import VideoMambaConfig, VideoMambaModel
    >>> config = VideoMambaConfig(hidden_size=32, num_hidden_layers=2, image_size=32, num_frames=4)
    >>> model = VideoMambaModel(config).eval()
    >>> model(pixel_values_videos=torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)).last_hidden_state.shape
    torch.Size([1, 17, 32])
    ```
    """

    # What a masked run leaves beside its encoder: the way to the teacher, of no use behind it.
    _keys_to_ignore_on_load_unexpected = (r"^clip_decoder\.",)

    def __init__(self, config: VideoMambaConfig):
        super().__init__(config)
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches_per_frame, width))
        self.temporal_pos_embedding = None
        if config.num_frames is not None:
            self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, config.temporal_positions, width))
        self.patch_embed = VideoMambaPatchEmbedding(config)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            # The chance rises linearly; the first mixer always runs.
            VideoMambaBlock(config, scan, config.drop_path_rate * i / max(1, depth - 1))
            for i, scan in enumerate(block_scans(config.scan, depth))
        )
        self.norm_f = Ma2mbaRMSNorm(width, config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.patch_embed

    def embed(self, pixels: torch.Tensor, is_video: bool = True) -> torch.Tensor:
        """Return the tokens of normalised frames with all position embeddings: (B, F, 3, H, W) -> (B, 1 + T S, D).

        The class token has a spatial position and no temporal one; an image (`is_video=False`) has no temporal one
        either. A clip shorter than `num_frames` has the first positions.
        """
        patches = self.patch_embed(pixels) + self.pos_embed[:, None, 1:]  # (B, T, S, D) + (1, 1, S, D)
        if is_video:
            patches = patches + self.temporal_pos_embedding[:, : patches.shape[1], None]  # (1, T, 1, D)
        first = self.cls_token + self.pos_embed[:, :1]  # (1, 1, D)
        return torch.cat([first.expand(len(patches), -1, -1), patches.flatten(1, 2)], dim=1)

    def encode(
        self,
        tokens: torch.Tensor,
        order: torch.Tensor | None = None,
        hidden_states: list[torch.Tensor] | None = None,
        layers_run: int | None = None,
    ) -> torch.Tensor:
        """Run the blocks and the final norm: (B, L, D) -> (B, L, D) in the dtype of the weights.

        Args:
            tokens: the class token, then any patches in stored order.
            order: (L,) in which temporal-first directions read; see `temporal_order`.
            hidden_states: a list that every block's input and the output are appended to.
            layers_run: the first blocks alone, without the norm: the residual stream behind them, fp32 or better.
                None, or all of them: the whole encoder.
        """
        backend = choose_backend(self.config.backend, tokens.device, self.dtype, scan="selective")
        hidden = tokens.to(at_least_fp32(tokens.dtype))  # the residual stream
        for block in self.layers[:layers_run]:
            if hidden_states is not None:
                hidden_states.append(hidden)
            hidden = block(hidden, order, backend)
        if layers_run in (None, len(self.layers)):
            hidden = self.norm_f(hidden)
        if hidden_states is not None:
            hidden_states.append(hidden)
        return hidden

    def temporal_order(self, frames: int, device: torch.device) -> torch.Tensor | None:
        """Return the order of temporal-first directions over T frames, None where there is none or it is the same."""
        needed = any(direction.temporal_first for block in self.layers for direction in block.mixer.directions)
        if not needed or frames == 1 or self.config.patches_per_frame == 1:
            return None
        return temporal_first(frames, self.config.patches_per_frame, device)

    def load_frames(self, pixel_values=None, pixel_values_videos=None) -> torch.Tensor:
        """Return normalised frames (B, F, 3, H, W) on this model's device; the arguments are those of `forward`."""
        if (pixel_values is None) == (pixel_values_videos is None):
            raise ValueError("give either pixel_values (images) or pixel_values_videos (clips)")
        config, weight = self.config, self.patch_embed.proj.weight
        given, name = pixel_values_videos, "pixel_values_videos"
        if pixel_values is not None:
            given, name = pixel_values, "pixel_values"
        frames = FrameSequence(given, config.image_size, config.image_mean, config.image_std, name)
        counts = {len(video) for video in frames.videos}
        if len(counts) != 1:
            raise ValueError(f"{name}: clips of {sorted(counts)} frames in one batch; there is no padding, so a batch "
                             "holds clips of equal length")  # fmt: skip
        count = counts.pop()
        if name == "pixel_values_videos" and config.num_frames is None:
            raise ValueError(
                "this is an image model, without temporal embedding; convert it with num_frames=..., or give its "
                "pictures as pixel_values"
            )
        if name == "pixel_values" and config.tubelet_size != 1:
            raise ValueError(f"a patch spans {config.tubelet_size} frames, an image is one; give clips")
        if name == "pixel_values_videos" and (not 0 < count <= config.num_frames or count % config.tubelet_size):
            raise ValueError(
                f"clips of {count} frames; this model reads up to {config.num_frames}, in steps of "
                f"{config.tubelet_size}: sample fewer, or convert the checkpoint with another num_frames"
            )
        pixels = frames.load(0, len(frames), weight.device, weight.dtype)
        return pixels.unflatten(0, (-1, count))

    @can_return_tuple
    def forward(
        self, pixel_values=None, pixel_values_videos=None, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode images or clips.

        Args:
            pixel_values: images (B, 3, H, W), uint8 or normalised. A clip model reads them as it does clips of one
                frame, without the temporal embedding.
            pixel_values_videos: clips (B, F, 3, H, W), a list of (F, 3, H, W), or `FrameSource`s; uint8 or normalised;
                of equal length, at most `num_frames`.

        Returns:
            `last_hidden_state` (B, 1 + T S, D), normed; `pooler_output` (B, D), its class token; `hidden_states`, if
            asked for: the residual stream before each block, fp32, and the output. The one before the last block is
            what masked pre-training aligns (section 3.3).
        """
        pixels = self.load_frames(pixel_values, pixel_values_videos)
        tokens = self.embed(pixels, is_video=pixel_values is None)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = [] if wanted else None
        order = self.temporal_order(pixels.shape[1] // self.config.tubelet_size, pixels.device)
        hidden = self.encode(tokens, order, hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=hidden[:, 0],
            hidden_states=None if hidden_states is None else tuple(hidden_states),
        )


class _Classifier(VideoMambaPreTrainedModel):
    """Encoder and a linear head on the class token; one label is a regression."""

    def __init__(self, config: VideoMambaConfig):
        super().__init__(config)
        self.videomamba = VideoMambaModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self):
        return self.videomamba.get_input_embeddings()

    def _classify(self, encoded: BaseModelOutputWithPooling, labels: torch.Tensor | None):
        logits = self.head(encoded.pooler_output)  # (B, D) -> (B, labels)
        if labels is None:
            loss = None
        elif labels.ndim == 2 and self.config.problem_type == "single_label_classification":
            loss = F.cross_entropy(logits.float(), labels.to(logits.device, torch.float32))  # (B, labels) shares
        else:
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=encoded.hidden_states)


class VideoMambaForImageClassification(_Classifier):
    """VideoMamba that names what an image shows.

    `forward` takes `labels`: (B,) class numbers; targets (B,) for `num_labels=1`; see `config.problem_type`. With
    `problem_type="single_label_classification"` also (B, labels), a share for each class, as mixed clips have them. It
    returns `logits` (B, labels), and the loss, a mean over the batch, where labels were given.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import modeling_video_ma2mba
    >>> pipeline("image-classification", model=path)("photo.jpg", top_k=1)
    [{'label': 'dog', 'score': 0.98}]
    ```
    """

    main_input_name = "pixel_values"

    def __init__(self, config: VideoMambaConfig):
        if config.num_frames is not None:
            raise ValueError(
                f"num_frames={config.num_frames}: this is a clip model; use VideoMambaForVideoClassification, or set "
                "num_frames=None"
            )
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        pixel_values=None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify images (B, 3, H, W), uint8 or normalised; labels and what is returned: see the class."""
        encoded = self.videomamba(pixel_values=pixel_values, output_hidden_states=output_hidden_states)
        return self._classify(encoded, labels)


class VideoMambaForVideoClassification(_Classifier):
    """VideoMamba that names what a clip shows, or rates it (`num_labels=1`, regression, as LVU's like ratio).

    Labels and what `forward` returns are those of `VideoMambaForImageClassification`.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import modeling_video_ma2mba
    >>> pipeline("video-classification", model=path)("clip.mp4", top_k=1)
    [{'label': 'juggling', 'score': 0.98}]
    ```
    """

    def __init__(self, config: VideoMambaConfig):
        if config.num_frames is None:
            raise ValueError(
                "num_frames=None: this is an image model; use VideoMambaForImageClassification, or set num_frames"
            )
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos=None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify clips (B, num_frames, 3, H, W), in any of the forms `VideoMambaModel` takes; see the class."""
        encoded = self.videomamba(pixel_values_videos=pixel_values_videos, output_hidden_states=output_hidden_states)
        frames = (encoded.last_hidden_state.shape[1] - 1) // self.config.patches_per_frame * self.config.tubelet_size
        if frames != self.config.num_frames:
            raise ValueError(
                f"clips of {frames} frames; this head has learnt clips of {self.config.num_frames}: sample as many"
            )
        return self._classify(encoded, labels)


__all__ = [
    "VideoMambaForImageClassification",
    "VideoMambaForVideoClassification",
    "VideoMambaModel",
    "VideoMambaPreTrainedModel",
]
