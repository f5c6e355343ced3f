"""What the language model reads, segment by segment, and the way back: from a gradient of it to those of the weights.

`TextInputs` is token ids or their embeddings; `VisualInputs` (visual_inputs.py) puts visual tokens in their places.
"""

import torch
from torch import nn

from .gradient_sums import GradientSums
from .row_layout import Rows


class TextInputs:
    """Word embeddings of a batch of rows: `inputs(i, j) -> (B, j-i, D)`."""

    def __init__(self, rows: Rows, embeddings: nn.Module):
        self.rows = rows
        self.embeddings = embeddings

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Return the input of positions start..stop."""
        if self.rows.inputs_embeds is not None:
            return self.rows.inputs_embeds[:, start:stop]
        return self.embeddings(self.rows.input_ids[:, start:stop])

    def borders(self) -> torch.Tensor | None:
        """Return the positions where a segment had better end; None: all are as good."""
        return None

    def trained(self) -> list[torch.Tensor]:
        """Return the tensors that `backward` finds gradients of: weights, or the given embeddings."""
        if self.rows.inputs_embeds is not None:
            return [self.rows.inputs_embeds] if self.rows.inputs_embeds.requires_grad else []
        return [parameter for parameter in self.embeddings.parameters() if parameter.requires_grad]

    def read_again(self) -> list[torch.Tensor]:
        """Return the tensors that are read in the forward and again in the backward, trained or not."""
        given = [self.rows.input_ids, self.rows.inputs_embeds]
        return [*self.embeddings.parameters(), *(tensor for tensor in given if tensor is not None)]

    def backward(self, start: int, stop: int, gradient: torch.Tensor, sums: GradientSums, autocast) -> None:
        """Add the gradients of `trained()` to `sums`, given that of the output, (B, j-i, D).

        `autocast` makes the context that the output was computed in.
        """
        trained = TextInputs.trained(self)
        if not trained:
            return
        if self.rows.inputs_embeds is not None:
            sums.write(self.rows.inputs_embeds, start, stop, gradient)
            return
        with torch.enable_grad(), autocast():
            embeds = self.embeddings(self.rows.input_ids[:, start:stop])
        sums.add_all(trained, torch.autograd.grad(embeds, trained, gradient.to(embeds.dtype), allow_unused=True))
