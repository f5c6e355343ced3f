"""`LengthSampler`: an order of samples in which those of one optimizer step are about equally long.

The Trainer cuts the order into batches and deals them to the processes in turn, so the batches of one step on all
devices come from one run of the order. Little is padded, no process waits long for another, and the segments of
multi-axis checkpointing are planned for few lengths.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Lengths are stretched at random by up to this share before they are sorted, so that every epoch mixes anew.
_JITTER = 0.05


class LengthSampler(Sampler[int]):
    """Yields the indices of an epoch; the same seed and epoch always give the same order.

    Steps come in random order, but the longest samples first: what does not fit into memory shows at once. A last
    step that is not full comes at the end.

    Args:
        lengths: of the samples, in tokens.
        step_size: samples of an optimizer step over all devices and accumulated batches.
        seed: of the order.
        steps_done: returns the optimizer steps done so far. The epoch is taken from them, since accelerate's
            `set_epoch` does not reach a sampler behind the batches it skips when several processes go on.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int, steps_done: Callable[[], int]):
        self.lengths, self.step_size, self.seed, self.steps_done = np.asarray(lengths), step_size, seed, steps_done

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        count, size = len(self.lengths), self.step_size
        epoch = self.steps_done() // -(-count // size)
        random = np.random.default_rng([self.seed, epoch])
        order = np.argsort(self.lengths * random.uniform(1, 1 + _JITTER, count), kind="stable")
        # The part of a step is taken from somewhere in the middle, or the longest would always be in it.
        start, rest = random.integers(max(1, count // size)) * size, count % size
        steps = np.delete(order, slice(start, start + rest)).reshape(-1, size)
        random.shuffle(steps)
        if len(steps):
            longest = self.lengths[steps].max(axis=1).argmax()
            steps[[0, longest]] = steps[[longest, 0]]
        for step in [*steps, order[start : start + rest]]:
            # Without the jitter, as batches are parts of a step.
            yield from step[np.argsort(self.lengths[step], kind="stable")].tolist()
