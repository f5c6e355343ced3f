"""VTC, VTM and MLM against formulas written out; hard negatives by how often they are drawn; several processes."""

import math
import socket

import pytest
import torch
from torch import multiprocessing

from modeling_video_ma2mba.text_video_losses import (
    contrastive_loss,
    gather_pairs,
    hard_negatives,
    masked_words_loss,
    matching_loss,
    similarity,
)


def test_similarity_is_the_mean_of_the_frames_cosines():
    random = torch.Generator().manual_seed(0)
    clips = torch.randn(3, 4, 5, generator=random, dtype=torch.float64)
    texts = torch.randn(2, 5, generator=random, dtype=torch.float64)
    found = similarity(clips, texts)
    for v in range(3):
        for n in range(2):
            cosines = [float(clips[v, t] @ texts[n] / clips[v, t].norm() / texts[n].norm()) for t in range(4)]
            assert found[v, n].item() == pytest.approx(sum(cosines) / 4, abs=1e-12)


def cross_entropy(scores: list[float], targets: list[float]) -> float:
    total = math.log(sum(math.exp(score) for score in scores))
    return -sum(target * (score - total) for score, target in zip(scores, targets))


def test_contrast_by_hand_with_two_texts_of_one_video():
    scores = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0], [1.0, -2.0, 0.25]], dtype=torch.float64)
    ids = torch.tensor([7, 3, 7])  # the first and the third pair are of one video
    targets = [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    rows = [cross_entropy(row, target) for row, target in zip(scores.tolist(), targets)]
    columns = [cross_entropy(column, target) for column, target in zip(scores.T.tolist(), targets)]
    expected = (sum(rows) / 3 + sum(columns) / 3) / 2
    assert contrastive_loss(scores, ids).item() == pytest.approx(expected, abs=1e-12)
    assert contrastive_loss(scores, torch.arange(3)).item() != pytest.approx(expected, abs=1e-3)


def test_matching_by_hand():
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.25]])
    expected = [cross_entropy([0.0, 1.0], [0, 1]), cross_entropy([2.0, -1.0], [0, 1])]
    expected += [cross_entropy([0.5, 0.25], [1, 0])]
    assert matching_loss(logits, positives=2).item() == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_masked_words_by_hand_and_none_masked():
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]])
    expected = (cross_entropy([1.0, 0.0, -1.0], [0, 0, 1]) + cross_entropy([0.0, 2.0, 0.5], [0, 1, 0])) / 2
    assert masked_words_loss(logits, torch.tensor([2, 1])).item() == pytest.approx(expected, abs=1e-6)
    nothing = torch.zeros(0, 3, requires_grad=True)
    loss = masked_words_loss(nothing, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and nothing.grad is not None


def test_negatives_are_drawn_as_their_softmax_says():
    scores = torch.tensor([[5.0, 1.0, 0.0, 2.0], [1.0, 5.0, 1.0, 1.0], [0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]])
    ids = torch.tensor([0, 1, 2, 2])
    torch.manual_seed(0)
    draws = torch.stack([hard_negatives(scores, ids)[1] for _ in range(4000)])
    shares = torch.stack([(draws == n).float().mean(0) for n in range(4)], dim=1)  # (rows, drawn)
    weights = torch.tensor([1.0, 0.0, 2.0]).exp()
    assert torch.allclose(shares[0, 1:], weights / weights.sum(), atol=0.03) and shares[0, 0] == 0
    assert torch.allclose(shares[1, [0, 2, 3]], torch.full((3,), 1 / 3), atol=0.03)
    assert torch.equal(shares[2:, 2:], torch.zeros(2, 2))  # nobody of the own video


def test_negatives_far_below_the_own_pair_and_none_at_all():
    scores = torch.tensor([[0.0, -900.0, -901.0], [-900.0, 0.0, -5000.0], [0.0, 0.0, 0.0]])
    rows, drawn = hard_negatives(scores, torch.arange(3))  # a softmax over all would leave 0 for every other one
    assert rows.tolist() == [0, 1, 2] and drawn[1] == 0 and drawn[0] in (1, 2)
    rows, drawn = hard_negatives(scores, torch.tensor([4, 4, 4]))
    assert len(rows) == len(drawn) == 0
    rows, drawn = hard_negatives(scores[:2, :2], torch.tensor([0, 1]))
    assert rows.tolist() == [0, 1] and drawn.tolist() == [1, 0]


def _gathered_gradients(rank: int, port: int, clips, texts, ids, queue) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    own = slice(3 * rank, 3 * rank + 3)
    one, other = clips[own].clone().requires_grad_(), texts[own].clone().requires_grad_()
    everyone = gather_pairs(one, other, ids[own])
    loss = contrastive_loss(similarity(everyone[0], everyone[1]) / 0.1, everyone[2])
    loss.backward()
    queue.put((rank, loss.item(), one.grad.tolist(), other.grad.tolist()))
    torch.distributed.destroy_process_group()


def test_two_processes_contrast_as_one_with_all_pairs():
    random = torch.Generator().manual_seed(0)
    clips = torch.randn(6, 2, 5, generator=random, dtype=torch.float64)
    texts = torch.randn(6, 5, generator=random, dtype=torch.float64)
    ids = torch.tensor([0, 1, 2, 3, 0, 5])  # one video has a text in each process
    one, other = clips.clone().requires_grad_(), texts.clone().requires_grad_()
    loss = contrastive_loss(similarity(one, other) / 0.1, ids)
    loss.backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    multiprocessing.spawn(_gathered_gradients, (port, clips, texts, ids, queue), nprocs=2)
    for rank, found, vision, text in (queue.get() for _ in range(2)):
        own = slice(3 * rank, 3 * rank + 3)
        assert found == pytest.approx(loss.item(), abs=1e-12)
        # Data-parallel training takes the mean over processes of what is a sum over their losses here.
        assert torch.allclose(torch.tensor(vision, dtype=torch.float64) / 2, one.grad[own], atol=1e-12)
        assert torch.allclose(torch.tensor(text, dtype=torch.float64) / 2, other.grad[own], atol=1e-12)
