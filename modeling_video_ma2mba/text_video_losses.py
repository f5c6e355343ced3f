"""What a multi-modal VideoMamba learns about pairs of clip and text (arXiv 2403.06977, section 3.3): VTC, VTM, MLM.

    VTC  contrast: of all clips and texts of a step, over all processes, those belong together that are of one video
    VTM  match: a text that has looked at a clip says whether they belong together; hard negatives from the own batch
    MLM  masked words, told from the text around them and the clip

Pure functions of features; modules are in `modeling_videomamba_multimodal.py`.

Dims: B pairs, V clips, N texts, T vectors of a clip, P projection width.
"""

import torch
from torch import distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F


def similarity(vision_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Return the cosine of clips (V, T, P) and texts (N, P), a mean over a clip's vectors: (V, N) fp32 or better."""
    kind = torch.promote_types(vision_embeds.dtype, torch.float32)
    vision, text = F.normalize(vision_embeds.to(kind), dim=-1), F.normalize(text_embeds.to(kind), dim=-1)
    return vision.mean(1) @ text.T  # the mean of cosines is the cosine with the mean of unit vectors


def gather_pairs(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors (B, ...) of all processes behind one another, (processes B, ...), with their gradients."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(tensors)
    return [torch.cat(all_gather(tensor.contiguous())) for tensor in tensors]


def contrastive_loss(scores: torch.Tensor, pair_ids: torch.Tensor) -> torch.Tensor:
    """Return VTC: soft-label cross-entropy in both directions, averaged.

    Args:
        scores: (B, B) similarity over temperature, clips by texts. pair_ids: (B,); pairs of one id share the target.
    """
    same = (pair_ids[:, None] == pair_ids[None, :]).to(scores.dtype)
    targets = same / same.sum(1, keepdim=True)  # symmetric: also those of the other direction
    to_text = F.cross_entropy(scores, targets)
    to_video = F.cross_entropy(scores.T, targets)
    return (to_text + to_video) / 2


@torch.no_grad()
def hard_negatives(scores: torch.Tensor, pair_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw for each row one that does not belong to it, the likelier the more similar, from torch's own generator.

    The public code takes the softmax over all and sets those that belong to the row to 0 afterwards. Here they are
    left out before, which is the same draw, and stays one where the others' shares would be too small for fp32.

    Args:
        scores: (B, B), a row for each that a negative is wanted for.

    Returns:
        rows (R,) that have a negative at all; for each the number of the negative (R,).
    """
    same = pair_ids[:, None] == pair_ids[None, :]
    rows = (~same).any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return rows, rows
    shares = scores.float().masked_fill(same, -torch.inf)[rows].softmax(1)
    return rows, shares.multinomial(1)[:, 0]


def matching_loss(logits: torch.Tensor, positives: int) -> torch.Tensor:
    """Return VTM: cross-entropy of logits (pairs, 2) of which the first `positives` belong together (class 1)."""
    labels = (torch.arange(len(logits), device=logits.device) < positives).long()
    return F.cross_entropy(logits.float(), labels)


def masked_words_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return MLM: cross-entropy of (words, vocabulary) logits of masked words, 0 where none is masked."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(1, len(labels))


__all__ = [
    "contrastive_loss",
    "gather_pairs",
    "hard_negatives",
    "masked_words_loss",
    "matching_loss",
    "similarity",
]
