"""`RowLayout`: makes masked positions invisible wherever they stand.

Each row's real tokens are moved to the front, the model runs on those, and its outputs are handed back to where the
tokens were. Convolution and scan thus only ever see a row's real tokens, and its state is its own at its own end.

Dims: B batch, T positions, K kept positions.
"""

import torch

from .state import RecurrentState


class RowLayout:
    """Where each row's real tokens are, for an attention mask that is not all ones.

    A masked position answers with the output of the last real token before it (nothing has happened since), zeros if
    there is none: so `logits[:, -1]` is right for rows padded on either side.

    Attributes:
        lengths: (B,) number of real tokens of each row.
        longest: the largest of them, at least 1.
    """

    def __init__(self, mask: torch.Tensor):
        mask = mask.bool()
        self.lengths = mask.sum(dim=1)  # (B,)
        self.longest = max(1, int(self.lengths.max()))
        self.source = torch.argsort(~mask, dim=1, stable=True)[:, : self.longest]  # (B, longest)
        self.last_real = mask.cumsum(dim=1) - 1  # (B, T) index of the last real token at or before; -1: none

    @classmethod
    def from_mask(cls, mask: torch.Tensor | None) -> "RowLayout | None":
        """Return the layout of a (B, T) mask, 0 or False where padded; None where nothing is masked."""
        return None if mask is None or bool(mask.all()) else cls(mask)

    def to_front(self, x: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Move real tokens of `x` (B, T, ...) to the front: (B, longest, ...); the rest is `fill`."""
        index = self.source.reshape(*self.source.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        behind = torch.arange(self.longest, device=x.device)[None, :] >= self.lengths[:, None]  # (B, longest)
        return x.gather(1, index).masked_fill(behind.reshape(*behind.shape, *[1] * (x.ndim - 2)), fill)

    def lengths_in(self, start: int, stop: int) -> torch.Tensor:
        """Return how many of the positions `start..stop` at the front are real, (B,)."""
        return (self.lengths - start).clamp(0, stop - start)


class Rows:
    """A batch of token rows as the model reads it: checked, and with each row's real tokens at the front.

    Args:
        input_ids: (B, T) or None. inputs_embeds: (B, T, D) or None; exactly one of the two.
        attention_mask: (B, T), or (B, seen + T) when continuing, of which the last T columns count; None: all real.
        state: what to continue from, or None.

    Attributes:
        input_ids, inputs_embeds: the given one with real tokens at the front, (B, length, ...).
        length: positions to read, at most T.
        full_length: T.
        layout: the `RowLayout`, None where nothing is masked.
    """

    def __init__(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        state: RecurrentState | None,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        given = input_ids if input_ids is not None else inputs_embeds
        if given.ndim != (2 if input_ids is not None else 3) or given.shape[1] == 0:
            raise ValueError(
                f"input of shape {tuple(given.shape)}: expected (batch, tokens >= 1) ids or their embeddings"
            )
        self.batch_size, self.full_length = given.shape[:2]
        self.device = given.device
        if state is not None and not isinstance(state, RecurrentState):
            raise TypeError(
                f"past_key_values is a {type(state).__name__}; this model continues from the RecurrentState of an "
                "earlier output (transformers' own Mamba-2 cache: RecurrentState.from_cache(cache, seen_tokens))"
            )
        if state is not None and state.batch_size != self.batch_size:
            raise ValueError(
                f"past_key_values holds {state.batch_size} rows and the input {self.batch_size}; "
                "use past_key_values.repeat(n) or .select(rows)"
            )
        self.layout = RowLayout.from_mask(self._own_part(attention_mask, state))
        self.length = self.full_length if self.layout is None else self.layout.longest
        self.input_ids = self.to_front(input_ids)
        self.inputs_embeds = self.to_front(inputs_embeds)

    def _own_part(self, mask: torch.Tensor | None, state: RecurrentState | None) -> torch.Tensor | None:
        if mask is None:
            return None
        seen = 0 if state is None else state.seen_tokens
        allowed = {self.full_length, self.full_length + seen}
        if mask.ndim != 2 or mask.shape[0] != self.batch_size or mask.shape[1] not in allowed:
            raise ValueError(
                f"attention_mask of shape {tuple(mask.shape)} does not fit {self.batch_size} rows of "
                f"{self.full_length} tokens after {seen} earlier ones"
            )
        return mask[:, -self.full_length :]

    def to_front(self, x: torch.Tensor | None, fill: float = 0) -> torch.Tensor | None:
        """Move a (B, T, ...) tensor that stands beside the tokens to the same order."""
        return x if x is None or self.layout is None else self.layout.to_front(x, fill)
