"""How likely continuations of a prompt are behind one state of a model: the options of a question, each at the cost of
its own tokens (benchmarks call it scoring by likelihood or "ppl").

The prompts are read once, all in one batch; every continuation then goes on from a fork of its prompt's state.

Dims: P prompts, N continuations of a prompt, R rows, T tokens, V vocabulary.
"""

import itertools
from collections.abc import Sequence

import torch

from modeling_video_ma2mba.pipeline_video_qa import pad_left
from modeling_video_ma2mba.state import RecurrentState


def check_letters(tokenizer, name: str) -> None:
    """Raise ValueError for a model whose tokenizer cannot tell the letters of options apart; before any video."""
    if tokenizer("A", add_special_tokens=False)["input_ids"] == tokenizer("B", add_special_tokens=False)["input_ids"]:
        raise ValueError(
            f"{name}: its tokenizer cannot tell the letters of options apart, so that --likelihood is not defined for "
            "it: use --likelihood text, or leave it out"
        )


@torch.no_grad()
def log_likelihoods(
    model, state: RecurrentState, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Return for each prompt the log-likelihood of each of its continuations, summed over tokens, in nats, [P][N].

    Args:
        model: a `VideoMa2mbaForConditionalGeneration` in eval mode.
        state: of one row, behind which the prompts stand; it stays as it was.
        prompts: token ids, 1 or more each.
        options: for each prompt, the token ids of its continuations, 1 or more each.

    Raises:
        ValueError: an empty prompt or continuation.
    """
    if not all(map(len, prompts)) or not all(len(option) for given in options for option in given):
        raise ValueError("a prompt or an option without a token: its likelihood is not defined")
    state = state.to(model.device)
    # Nothing here may depend on the length of the video, as in `video_chat.answer`.
    state.seen_tokens = 0
    out = _read(model, state.repeat(len(prompts)), prompts, keep=1)
    first = out.logits[:, -1].log_softmax(-1)  # (P, V)
    rows = [(row, option) for row, given in enumerate(options) for option in given]
    totals = [first[row, option[0]] for row, option in rows]

    longer = [place for place, (_, option) in enumerate(rows) if len(option) > 1]
    if longer:
        behind = out.past_key_values.select(torch.tensor([rows[place][0] for place in longer]))
        behind.seen_tokens = 0
        # The last token of each is predicted, not read.
        read = [rows[place][1][:-1] for place in longer]
        logits = _read(model, behind, read, keep=max(map(len, read))).logits  # (R, T, V)
        for place, scores in zip(longer, logits.log_softmax(-1)):
            targets = torch.tensor(rows[place][1][1:], device=model.device)
            scores = scores[-len(targets) :]  # padded on the left: the row's own tokens stand at its end
            totals[place] = totals[place] + scores.gather(1, targets[:, None]).sum()
    values = iter(torch.stack(totals).tolist())
    return [list(itertools.islice(values, len(given))) for given in options]


def _read(model, state: RecurrentState, rows: Sequence[Sequence[int]], keep: int):
    ids, mask = pad_left([torch.tensor(row) for row in rows], model.config.get_text_config().pad_token_id)
    return model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        past_key_values=state,
        use_cache=True,
        logits_to_keep=keep,
    )
