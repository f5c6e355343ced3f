"""`RecurrentState`: everything a stack of Mamba-2 layers remembers, of a size that does not depend on the length read.

It is what `segment(x, state) -> (y, state)` takes and returns, what `generate` carries as `past_key_values`, and what
can be kept as a file. Tensors inside are never written in place: a fork costs nothing and stays as it was.

Dims: B batch, W convolution width, C convolution channels, H heads, P head dim, N state size.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import DynamicCache

from .configuration_video_ma2mba import Ma2mbaConfig

_FORMAT = "ma2mba-state-1"
# A header is read as a whole before it can be checked; 64 layers take 13 kB.
_MAX_HEADER_BYTES = 2**24


class RecurrentState:
    """Convolution and SSM state of every layer.

    Attributes:
        conv: per layer the last `W - 1` inputs of the convolution before its activation, `(B, W-1, C)`.
        ssm: per layer the SSM state h of `h_t = A_t h_{t-1} + B_t x_t`, `(B, H, P, N)`, fp32 or better.
        seen_tokens: positions read so far, padding included (what `get_seq_length` reports to `generate`).
    """

    # transformers asks this of whatever it finds in `past_key_values`.
    is_compileable = False

    def __init__(self, conv: list[torch.Tensor], ssm: list[torch.Tensor], seen_tokens: int = 0):
        self.conv = conv
        self.ssm = ssm
        self.seen_tokens = seen_tokens

    @classmethod
    def zeros(
        cls, config: Ma2mbaConfig, batch_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> "RecurrentState":
        """Return the state before the first token: zeros. `dtype` is the model's; the SSM state is at least fp32."""
        conv_shape, ssm_shape = cls.shapes(config, batch_size)
        layers = range(config.num_hidden_layers)
        ssm_dtype = torch.promote_types(dtype, torch.float32)
        return cls(
            [torch.zeros(conv_shape, dtype=dtype, device=device) for _ in layers],
            [torch.zeros(ssm_shape, dtype=ssm_dtype, device=device) for _ in layers],
        )

    @staticmethod
    def shapes(config: Ma2mbaConfig, batch_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of one layer's convolution and SSM state."""
        return (
            (batch_size, config.conv_kernel - 1, config.conv_dim),
            (batch_size, config.num_heads, config.head_dim, config.state_size),
        )

    @property
    def batch_size(self) -> int:
        return self.ssm[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(t.numel() * t.element_size() for t in (*self.conv, *self.ssm))

    def fork(self) -> "RecurrentState":
        """Return an independent state that shares the tensors (which nobody writes to)."""
        return RecurrentState(list(self.conv), list(self.ssm), self.seen_tokens)

    def assign(self, other: "RecurrentState") -> None:
        """Become `other`: what a forward does to the state it was given, once it has succeeded."""
        self.conv, self.ssm, self.seen_tokens = list(other.conv), list(other.ssm), other.seen_tokens

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "RecurrentState":
        """Return a state with `function` applied to every tensor."""
        return RecurrentState([function(t) for t in self.conv], [function(t) for t in self.ssm], self.seen_tokens)

    def repeat(self, times: int) -> "RecurrentState":
        """Return the state with every row repeated `times` times in place: rows 0, 0, 1, 1, ..."""
        return self.map(lambda t: t.repeat_interleave(times, dim=0))

    def select(self, rows: torch.Tensor) -> "RecurrentState":
        """Return the state of the given rows, `rows` (n,) integer."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def detach(self) -> "RecurrentState":
        return self.map(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> "RecurrentState":
        return self.map(lambda t: t.to(device))

    # What `generate` calls, under the names of transformers' `Cache`.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1  # no limit

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.assign(self.select(beam_idx))

    # transformers' own cache.

    @classmethod
    def from_cache(cls, cache: DynamicCache, seen_tokens: int) -> "RecurrentState":
        """Read the cache of a `Mamba2ForCausalLM`, whose convolution state has one (never used) column more."""
        for i, layer in enumerate(cache.layers):
            if any((getattr(layer, name, None) or {}).get(0) is None for name in ("conv_states", "recurrent_states")):
                raise ValueError(f"layer {i} of the cache holds no Mamba-2 state; run a forward with it first")
        return cls(
            [layer.conv_states[0][:, :, 1:].transpose(1, 2).contiguous() for layer in cache.layers],
            [layer.recurrent_states[0].clone() for layer in cache.layers],
            seen_tokens,
        )

    def to_cache(self, config: Ma2mbaConfig) -> DynamicCache:
        """Return a cache that `Mamba2ForCausalLM` continues from."""
        cache = DynamicCache(config=config)
        for i, (conv, ssm) in enumerate(zip(self.conv, self.ssm)):
            columns = torch.nn.functional.pad(conv.transpose(1, 2), (1, 0))  # (B, W-1, C) -> (B, C, W)
            cache.update_conv_state(columns, i, conv_kernel_size=config.conv_kernel)
            cache.update_recurrent_state(ssm, i)
            if hasattr(cache.layers[i], "has_previous_state"):
                cache.layers[i].has_previous_state[0] = True
        return cache

    # Files.

    def save(
        self,
        path: str | Path,
        metadata: dict[str, str] | None = None,
        dtype: torch.dtype | None = None,
        others: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write the state as safetensors; `metadata` is kept in the header as strings.

        Args:
            dtype: of the state's tensors in the file; None keeps theirs. bfloat16 halves the file and rounds the
                state.
            others: tensors that go with the state, by names of their own; kept as they are.
        """
        tensors = dict(others or {})
        for i, (conv, ssm) in enumerate(zip(self.conv, self.ssm)):
            tensors[f"layers.{i}.conv"] = conv.detach().to(dtype or conv.dtype).contiguous()
            tensors[f"layers.{i}.ssm"] = ssm.detach().to(dtype or ssm.dtype).contiguous()
        header = {"format": _FORMAT, "seen_tokens": str(self.seen_tokens), "metadata": json.dumps(metadata or {})}
        save_file(tensors, str(path), metadata=header)

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: Ma2mbaConfig,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        others: dict[str, torch.Tensor] | None = None,
    ) -> tuple["RecurrentState", dict[str, str]]:
        """Read a state for a model of this config; return it with its metadata. The SSM state is fp32 or better again.

        Every name, shape and dtype is checked against `config`, the model's, and the rows against `batch_size`, if
        given, before a tensor is read.

        Args:
            others: uint8 tensors of the right shapes, on any device, into which the file's tensors of these names are
                written; the file holds exactly these beside the state.

        Raises:
            ValueError: the file is no state, is damaged, or belongs to another model; names file and reason.
        """
        config = config.get_text_config()
        with _opened(path, device) as file:
            seen_tokens, metadata = _read_header(path, file.metadata() or {})
            cls._check_tensors(path, file, config, batch_size, others or {})
            layers = range(config.num_hidden_layers)
            # Copies: what is read from a file on a CPU is the file, and changes with it.
            conv = [file.get_tensor(f"layers.{i}.conv").clone() for i in layers]
            ssm = [file.get_tensor(f"layers.{i}.ssm") for i in layers]
            ssm = [t.to(torch.promote_types(t.dtype, torch.float32), copy=True) for t in ssm]
            for name, tensor in (others or {}).items():
                tensor.copy_(file.get_tensor(name))
        return cls(conv, ssm, seen_tokens), metadata

    @classmethod
    def load_metadata(cls, path: str | Path) -> dict[str, str]:
        """Read the metadata alone; raises as `load` does."""
        with _opened(path, "cpu") as file:
            return _read_header(path, file.metadata() or {})[1]

    @classmethod
    def _check_tensors(cls, path, file, config: Ma2mbaConfig, rows: int | None, others: dict) -> None:
        expected = {f"layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in ("conv", "ssm")}
        if set(file.keys()) != expected | set(others):
            raise ValueError(
                f"{path}: holds {len(file.keys())} tensors, this model of {config.num_hidden_layers} layers "
                f"needs {len(expected) + len(others)}: the state of another model"
            )
        for name, tensor in others.items():
            found = file.get_slice(name)
            if (found.get_shape(), found.get_dtype()) != (list(tensor.shape), "U8"):
                raise ValueError(
                    f"{path}: {name} is {found.get_dtype()} {tuple(found.get_shape())}, this model needs U8 "
                    f"{tuple(tensor.shape)}"
                )
        batch_size = (file.get_slice("layers.0.ssm").get_shape() or [0])[0]
        if batch_size < 1:
            raise ValueError(f"{path}: holds no rows")
        if rows not in (None, batch_size):
            raise ValueError(f"{path}: holds {batch_size} rows, expected {rows}")
        for name in sorted(expected):
            tensor = file.get_slice(name)
            shape = cls.shapes(config, batch_size)[name.endswith("ssm")]
            if tuple(tensor.get_shape()) != shape:
                raise ValueError(f"{path}: {name} is {tuple(tensor.get_shape())}, this model needs {shape}")
            allowed = ("F64", "F32", "BF16") if name.endswith("ssm") else ("F64", "F32", "BF16", "F16")
            if tensor.get_dtype() not in allowed:
                raise ValueError(f"{path}: {name} has dtype {tensor.get_dtype()}, allowed are {', '.join(allowed)}")


@contextmanager
def _opened(path: str | Path, device: torch.device | str) -> Iterator[safe_open]:
    """Open a state file of this version; a file that is damaged or something else is a ValueError."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: damaged: its header would take {length} bytes, allowed are {_MAX_HEADER_BYTES}")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                raise ValueError(f"{path}: not a state file of this version ({_FORMAT})")
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error


def _read_header(path: str | Path, header: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Return the tokens seen and the metadata."""
    try:
        seen_tokens, metadata = header["seen_tokens"], json.loads(header["metadata"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is damaged ({type(error).__name__})") from error
    if not re.fullmatch("[0-9]{1,18}", seen_tokens):
        raise ValueError(f"{path}: its header is damaged (seen_tokens={seen_tokens!r:.40})")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: its header is damaged (metadata must map names to text)")
    return int(seen_tokens), metadata
