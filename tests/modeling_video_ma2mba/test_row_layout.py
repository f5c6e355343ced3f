"""RowLayout and Rows: where real tokens go, what masked positions answer, which inputs are refused."""

import pytest
import torch

from modeling_video_ma2mba.row_layout import RowLayout, Rows
from modeling_video_ma2mba.state import RecurrentState

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("mask", [None, torch.ones(2, 4), torch.ones(1, 1, dtype=torch.bool)])
def test_nothing_masked_needs_no_layout(mask):
    assert RowLayout.from_mask(mask) is None


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32, torch.int8])
def test_real_tokens_move_to_the_front_in_order(dtype):
    layout = RowLayout.from_mask(MASK.to(dtype))
    assert layout.lengths.tolist() == [3, 2, 3, 0] and layout.longest == 3
    x = torch.arange(1, 21).reshape(4, 5)
    assert layout.to_front(x, -7).tolist() == [[3, 4, 5], [6, 7, -7], [11, 13, 15], [-7, -7, -7]]
    deep = x[..., None, None].expand(4, 5, 2, 3)
    assert torch.equal(layout.to_front(deep, -7)[..., 1, 2], layout.to_front(x, -7))


def test_masked_positions_point_to_the_last_real_token_before():
    layout = RowLayout(MASK)
    assert layout.last_real.tolist() == [
        [-1, -1, 0, 1, 2],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 2],
        [-1, -1, -1, -1, -1],
    ]


def test_lengths_in_a_piece():
    layout = RowLayout(MASK)
    assert layout.lengths_in(0, 2).tolist() == [2, 2, 2, 0]
    assert layout.lengths_in(2, 3).tolist() == [1, 0, 1, 0]
    assert layout.lengths_in(3, 9).tolist() == [0, 0, 0, 0]


def test_all_masked_batch_still_has_one_position():
    layout = RowLayout(torch.zeros(2, 3))
    assert layout.longest == 1 and layout.lengths.tolist() == [0, 0]


def test_what_stands_at_masked_positions_neither_moves_nor_gets_gradients():
    x = torch.randn(4, 5, 3)
    x[MASK == 0] = float("nan")
    x.requires_grad_()
    front = RowLayout(MASK).to_front(x)
    assert torch.isfinite(front).all()
    front.square().sum().backward()
    assert (x.grad[MASK == 0] == 0).all()
    assert (x.grad[MASK == 1] != 0).all()


def test_rows_hold_the_real_tokens():
    ids = torch.arange(20).reshape(4, 5)
    rows = Rows(ids, None, MASK, None)
    assert (rows.batch_size, rows.full_length, rows.length) == (4, 5, 3)
    assert rows.input_ids.tolist() == [[2, 3, 4], [5, 6, 0], [10, 12, 14], [0, 0, 0]]
    assert Rows(ids, None, None, None).length == 5


@pytest.fixture
def state(text_config):
    state = RecurrentState.zeros(text_config(), 4, torch.float32, "cpu")
    state.seen_tokens = 7
    return state


def test_a_mask_over_old_and_new_counts_by_its_end(state):
    ids = torch.arange(20).reshape(4, 5)
    long = torch.cat([torch.zeros(4, 7, dtype=torch.long), MASK], dim=1)
    assert torch.equal(Rows(ids, None, long, state).input_ids, Rows(ids, None, MASK, state).input_ids)


@pytest.mark.parametrize("shape", [(4, 6), (4, 4), (3, 5), (4, 13), (4, 7), (4,), (4, 1, 5, 5)])
def test_a_mask_that_fits_nothing_is_refused(state, shape):
    with pytest.raises(ValueError, match="attention_mask"):
        Rows(torch.ones(4, 5, dtype=torch.long), None, torch.ones(shape), state)


def test_inputs_are_checked(state):
    ids, embeds = torch.ones(4, 5, dtype=torch.long), torch.ones(4, 5, 8)
    for given in ((None, None), (ids, embeds)):
        with pytest.raises(ValueError, match="exactly one"):
            Rows(*given, None, None)
    for given in ((ids[0], None), (ids[:, :0], None), (None, ids), (None, embeds[:, :0]), (None, embeds[None])):
        with pytest.raises(ValueError, match="shape"):
            Rows(*given, None, None)
    with pytest.raises(ValueError, match=r"4 rows.*2"):
        Rows(ids[:2], None, None, state)
    for wrong in ((torch.zeros(1),), "cache", {"conv": 1}):
        with pytest.raises(TypeError, match="RecurrentState"):
            Rows(ids, None, None, wrong)
