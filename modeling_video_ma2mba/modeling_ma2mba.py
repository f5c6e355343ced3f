"""Ma2mba: the Mamba-2 language model (arXiv 2405.21060) as one causal machine, `segment(x, state) -> (y, state)`.

- parameter names are those of transformers' `Mamba2ForCausalLM`, so its checkpoints load here and ours load there
- one block for training, prefill of any piece length and decoding; splitting anywhere gives the same result
- masked positions are invisible wherever they stand (row_layout.py)
- A_log, D, dt_bias, norm statistics, SSM states and (when configured) the residual stream are fp32 or better

Dims: B batch, T tokens, D model width, E inner width, C convolution channels, W convolution width, H heads,
P head dim, G groups, N state size, V vocabulary, K kept positions.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .checkpointing import CheckpointingMixin
from .configuration_video_ma2mba import Ma2mbaConfig
from .generation_video_ma2mba import Ma2mbaGenerationMixin
from .hub_folder import code_in_config, own_class
from .kernels import Backend, at_least_fp32, causal_conv, choose_backend, max_segment_tokens, ssd
from .language_model_outputs import causal_lm_outputs, model_outputs
from .norms import Ma2mbaRMSNorm
from .row_layout import RowLayout, Rows
from .segment_inputs import TextInputs
from .state import RecurrentState

_FP32_PARAMETERS = ("A_log", "D", "dt_bias")


class Ma2mbaMixer(nn.Module):
    """The Mamba-2 mixer: projection, causal convolution, state space scan, gated norm, projection."""

    def __init__(self, config: Ma2mbaConfig):
        super().__init__()
        self.config = config
        inner, conv_dim, heads = config.intermediate_size, config.conv_dim, config.num_heads
        fp32 = at_least_fp32(torch.get_default_dtype())
        self.in_proj = nn.Linear(config.hidden_size, inner + conv_dim + heads, bias=config.use_bias)
        # A container for the weights, under the checkpoint's name; `causal_conv` reads them.
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, config.conv_kernel, groups=conv_dim, bias=config.use_conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(heads, dtype=fp32))
        self.A_log = nn.Parameter(torch.empty(heads, dtype=fp32))
        self.D = nn.Parameter(torch.empty(heads, dtype=fp32))
        self.norm = Ma2mbaRMSNorm(inner, config.layer_norm_epsilon, n_groups=config.n_groups)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=config.use_bias)

    def _apply(self, fn, recurse=True):
        # `.to`, `.half` and `.bfloat16` pass through here: the SSM parameters follow to a device, never below fp32.
        kept = {id(getattr(self, name)) for name in _FP32_PARAMETERS}
        kept |= {id(getattr(self, name).grad) for name in _FP32_PARAMETERS if getattr(self, name).grad is not None}

        def apply(tensor):
            moved = fn(tensor)
            if id(tensor) in kept and moved.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        return super()._apply(apply, recurse)

    def forward(
        self,
        hidden: torch.Tensor,
        conv_state: torch.Tensor,
        ssm_state: torch.Tensor,
        lengths: torch.Tensor | None,
        backend: Backend,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read `hidden` (B, T, D) after the given states; return the output and the states behind it.

        Args:
            conv_state: (B, W-1, C). ssm_state: (B, H, P, N).
            lengths: (B,) real tokens of each row, at its front; None if all T are.
        """
        inputs = self.in_proj(hidden), conv_state, ssm_state, lengths, backend  # (B, T, E + C + H)
        if backend.recompute and torch.is_grad_enabled():
            options = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
            y, conv_state, ssm_state = checkpoint(self._scan, *inputs, **options)
        else:
            y, conv_state, ssm_state = self._scan(*inputs)
        return self.out_proj(y), conv_state, ssm_state

    def _scan(self, projected, conv_state, ssm_state, lengths, backend):
        """Return what stands between the projections: (B, T, E + C + H) -> (B, T, E), and the states behind it."""
        config = self.config
        batch_size, length, _ = projected.shape
        inner, groups = config.intermediate_size, config.n_groups
        gate, xBC, dt = projected.split([inner, config.conv_dim, config.num_heads], dim=-1)

        # 1. causal convolution over the row's own last W-1 inputs and these
        conv_state = conv_state.to(xBC.dtype)
        u = causal_conv(xBC, self.conv1d.weight, self.conv1d.bias, conv_state, backend)
        conv_state = _next_conv_state(conv_state, xBC, lengths)

        # 2. scan. A masked token has dt = 0: decay 1, input 0, so it leaves the state as it is.
        dt = F.softplus(dt.to(at_least_fp32(dt.dtype)) + self.dt_bias)
        low, high = config.time_step_limit
        if low > 0 or high < math.inf:
            dt = dt.clamp(low, high)
        if lengths is not None:
            dt = dt.masked_fill(torch.arange(length, device=dt.device)[None, :, None] >= lengths[:, None, None], 0)
        x, B, C = u.split([inner, groups * config.state_size, groups * config.state_size], dim=-1)
        y, ssm_state = ssd(
            x.reshape(batch_size, length, config.num_heads, config.head_dim),
            dt,
            -torch.exp(self.A_log.to(dt.dtype)),
            B.reshape(batch_size, length, groups, config.state_size),
            C.reshape(batch_size, length, groups, config.state_size),
            self.D,
            ssm_state,
            backend,
            config.chunk_size,
        )

        # 3. gated norm
        return self.norm(y.reshape(batch_size, length, inner), gate), conv_state, ssm_state

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Initialise A_log, D and dt_bias as Mamba-2 does: A = 1..H, D = 1, dt log-uniform in its range."""
        config, device = self.config, self.A_log.device
        init.copy_(self.A_log, torch.log(torch.arange(1, config.num_heads + 1, device=device, dtype=torch.float32)))
        init.ones_(self.D)
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        dt = torch.exp(low + (high - low) * torch.rand(config.num_heads, device=device, dtype=torch.float32))
        dt = dt.clamp(min=config.time_step_floor)
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def _next_conv_state(conv_state: torch.Tensor, xBC: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Return each row's last W-1 real convolution inputs, (B, W-1, C), as a copy: a view would keep all of `xBC`."""
    width, length = conv_state.shape[1], xBC.shape[1]
    if lengths is None and length >= width:
        return xBC[:, length - width :].clone()
    if lengths is None:
        return torch.cat([conv_state[:, length:], xBC], dim=1)
    # Read from each where it stands: gathering from the two as one would copy all of them, and keep that for backward.
    index = lengths[:, None] + torch.arange(width, device=xBC.device)[None, :]  # (B, W-1)
    row = torch.arange(len(lengths), device=xBC.device)[:, None]  # (B, 1)
    earlier, own = conv_state[row, index.clamp(max=width - 1)], xBC[row, (index - width).clamp(min=0)]
    return torch.where((index < width)[..., None], earlier, own)


class Ma2mbaBlock(GradientCheckpointingLayer):
    """Norm, mixer and residual: the one implementation of a layer, for every use."""

    def __init__(self, config: Ma2mbaConfig):
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = Ma2mbaRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = Ma2mbaMixer(config)

    def forward(
        self,
        hidden: torch.Tensor,
        conv_state: torch.Tensor,
        ssm_state: torch.Tensor,
        lengths: torch.Tensor | None,
        backend: Backend,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`block(x, conv, ssm) -> (x, conv, ssm)`; shapes as in `Ma2mbaMixer.forward`."""
        if self.residual_in_fp32:
            hidden = hidden.to(at_least_fp32(hidden.dtype))
        y, conv_state, ssm_state = self.mixer(self.norm(hidden), conv_state, ssm_state, lengths, backend)
        return hidden + y, conv_state, ssm_state


class Ma2mbaPreTrainedModel(CheckpointingMixin, PreTrainedModel):
    config: Ma2mbaConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Ma2mbaBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _keep_in_fp32_modules_strict = _FP32_PARAMETERS
    _is_stateful = True

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers' own; the folder also carries the code, for `trust_remote_code=True` elsewhere."""
        with code_in_config(self.config), own_class(self):
            super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Ma2mbaMixer):
            module.reset_ssm_parameters()
            init.kaiming_uniform_(module.conv1d.weight, a=math.sqrt(5))
            if module.conv1d.bias is not None:
                init.zeros_(module.conv1d.bias)
            depth = module.config.num_hidden_layers if module.config.rescale_prenorm_residual else 1
            bound = 1 / math.sqrt(module.config.intermediate_size * depth)
            init.uniform_(module.out_proj.weight, -bound, bound)


class Ma2mbaModel(Ma2mbaPreTrainedModel):
    """The stack of Mamba-2 blocks with its embedding.

    Example:

    ```python
    >>> import torch
    >>> from modeling_video_ma2mba import Ma2mbaConfig, Ma2mbaModel
    >>> config = Ma2mbaConfig(hidden_size=64, num_heads=4, head_dim=32, n_groups=1, num_hidden_layers=2, vocab_size=99)
    >>> model = Ma2mbaModel(config).eval()
    >>> x = model.embeddings(torch.arange(10)[None])
    >>> whole, _ = model.segment(x, model.new_state(1))
    >>> first, state = model.segment(x[:, :7], model.new_state(1))
    >>> rest, state = model.segment(x[:, 7:], state)
    >>> torch.allclose(torch.cat([first, rest], 1), whole, atol=1e-5)
    True
    ```
    """

    # Tokens read at once where no gradient is needed: large enough to keep a GPU busy, small enough for a laptop.
    segment_length = 4096

    def __init__(self, config: Ma2mbaConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Ma2mbaBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm_f = Ma2mbaRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.checkpointing = None  # a `Checkpointing` once multi-axis checkpointing is enabled
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value

    def new_state(self, batch_size: int) -> RecurrentState:
        """Return the state before the first token, on this model's device."""
        weight = self.embeddings.weight
        return RecurrentState.zeros(self.config, batch_size, self.dtype, weight.device)

    def segment(
        self,
        inputs_embeds: torch.Tensor,
        state: RecurrentState,
        lengths: torch.Tensor | None = None,
        hidden_states: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, RecurrentState]:
        """Read `inputs_embeds` (B, T, D) after `state`; return the normed output (B, T, D) and the state behind it.

        Exact for any split of a sequence, differentiable in the input, the state and the weights; `state` is left as
        it was.

        Args:
            lengths: (B,) real tokens of each row, which stand at its front; None if all T are.
            hidden_states: a list that every layer's input and the output are appended to.
        """
        backend = choose_backend(self.config.backend, inputs_embeds.device, inputs_embeds.dtype)
        hidden, conv, ssm = inputs_embeds, [], []
        for block, conv_state, ssm_state in zip(self.layers, state.conv, state.ssm):
            if hidden_states is not None:
                hidden_states.append(hidden)
            hidden, conv_state, ssm_state = block(hidden, conv_state, ssm_state, lengths, backend)
            conv.append(conv_state)
            ssm.append(ssm_state)
        hidden = self.norm_f(hidden)
        if hidden_states is not None:
            hidden_states.append(hidden)
        return hidden, RecurrentState(conv, ssm, state.seen_tokens + inputs_embeds.shape[1])

    def stream(
        self,
        embed: Callable[[int, int], torch.Tensor],
        length: int,
        state: RecurrentState,
        layout: RowLayout | None = None,
        segment_length: int | None = None,
        output_hidden_states: bool = False,
        borders: torch.Tensor | None = None,
    ) -> Iterator[tuple[int, torch.Tensor, list[torch.Tensor] | None]]:
        """Read `length` positions piece by piece; `state` moves along.

        With gradients a piece is as long as the kernels allow; without, `segment_length` (default: 4,096 tokens over
        all rows), so that memory does not grow with the length.

        Args:
            embed: `embed(i, j)` returns the input of positions i..j, (B, j-i, D).
            borders: rising positions; a piece ends at the last one within its reach, if there is one. None: anywhere.

        Yields:
            start, the output (B, n, D) of the positions from `start`, and every layer's hidden states or None.
        """
        piece = self.longest_segment(state.batch_size)
        if not torch.is_grad_enabled():
            piece = min(piece, segment_length or max(1, self.segment_length // state.batch_size))
        stop = 0
        while stop < length:
            start, stop = stop, min(stop + piece, length)
            if borders is not None:
                border = int(borders[torch.searchsorted(borders, stop, right=True) - 1])
                stop = border if border > start else stop
            per_layer = [] if output_hidden_states else None
            lengths = None if layout is None else layout.lengths_in(start, stop)
            hidden, after = self.segment(embed(start, stop), state, lengths, per_layer)
            state.assign(after)
            yield start, hidden, per_layer

    def longest_segment(self, batch_size: int) -> int:
        """Return the tokens of each row that the kernels can take at once, in whole chunks where possible."""
        config = self.config
        tokens = max_segment_tokens(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            conv_dim=config.conv_dim,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            state_size=config.state_size,
            chunk_size=config.chunk_size,
            batch_size=batch_size,
        )
        return tokens // config.chunk_size * config.chunk_size or max(1, tokens)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_length: int | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Read tokens after `past_key_values`.

        Args:
            input_ids: (B, T). Exactly one of `input_ids` and `inputs_embeds` (B, T, D) is given.
            attention_mask: (B, T), or (B, seen + T) of which the last T count; 0 makes a position invisible.
            past_key_values: state to continue from; it is brought up to date in place.
            segment_length: tokens per piece where no gradient is needed; the result does not depend on it.
        """
        rows = Rows(input_ids, inputs_embeds, attention_mask, past_key_values)
        return model_outputs(
            self,
            rows,
            TextInputs(rows, self.embeddings),
            use_cache=self.wants_cache(use_cache),
            past_key_values=past_key_values,
            output_hidden_states=self.wants_hidden_states(output_hidden_states),
            segment_length=segment_length,
        )

    def wants_cache(self, use_cache: bool | None) -> bool:
        """Return the caller's choice, else the config's (never in training)."""
        return use_cache if use_cache is not None else self.config.use_cache and not self.training

    def wants_hidden_states(self, output_hidden_states: bool | None) -> bool:
        """Return the caller's choice, else the config's."""
        return self.config.output_hidden_states if output_hidden_states is None else output_hidden_states


class Ma2mbaForCausalLM(Ma2mbaPreTrainedModel, Ma2mbaGenerationMixin):
    """The language model alone: loads any Mamba-2 checkpoint in transformers' layout."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: Ma2mbaConfig):
        super().__init__(config)
        self.backbone = Ma2mbaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.backbone.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        segment_length: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Read tokens after `past_key_values` and predict the next ones; the other arguments as in `Ma2mbaModel`.

        Args:
            labels: (B, T) aligned with the input, -100 where there is nothing to learn. In training with labels there
                is a loss and no logits; the loss is divided by `num_items_in_batch`, else by the supervised positions.
            logits_to_keep: number of last positions, or 1-D positions, whose logits are wanted; 0 means all.
        """
        rows = Rows(input_ids, inputs_embeds, attention_mask, past_key_values)
        return causal_lm_outputs(
            self.backbone,
            self.lm_head,
            rows,
            TextInputs(rows, self.backbone.embeddings),
            use_cache=self.backbone.wants_cache(use_cache),
            past_key_values=past_key_values,
            labels=labels,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
            training=self.training,
            output_hidden_states=self.backbone.wants_hidden_states(output_hidden_states),
            segment_length=segment_length,
        )


__all__ = ["Ma2mbaForCausalLM", "Ma2mbaModel", "Ma2mbaPreTrainedModel"]
