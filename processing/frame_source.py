"""Frames that wait on the host: an array, or a size-limited memory-mapped file, sliced a few frames at a time.

`FrameSource` is deliberately no tensor, list, tuple or mapping and has no `to`, so Trainer, accelerate and the data
loader's pinning leave it where it is; the model uploads the slice that it needs, when it needs it. It does not decode,
resize or normalise.

    with FrameSource.create_file(chunks, limit_bytes=2**33) as frames:
        first = frames[0:32]          # uint8 (32, 3, H, W) on the host

Shapes: `F` frames, `H` height, `W` width.
"""

import os
import tempfile
import weakref
from collections.abc import Iterable

import numpy as np
import torch


class FrameSource:
    """`len(fs)` frames, read by slices `fs[i:j]`, in any order, the same every time.

    Args:
        frames: uint8 (F, 3, H, W), a numpy array or a CPU torch tensor; kept, not copied. For frames that do not fit
            into memory use `create_file`.

    Attributes:
        shape (`tuple[int, int, int, int]`): (F, 3, H, W).
        dtype (`torch.dtype`): torch.uint8.
        path (`str | None`): the file behind it, or None for an array.

    A source made by `create_file` owns its file: the file goes when the source is closed, garbage-collected or the
    process ends. Pickled copies and forked ones open the same file and own nothing, so the owner must outlive them;
    with `hand_over` the pickled copy owns the file instead, as when a data loader worker sends it to the trainer.
    """

    dtype = torch.uint8

    def __init__(self, frames: np.ndarray | torch.Tensor) -> None:
        frames = np.asarray(frames)
        _check_frames(frames)
        self.shape: tuple[int, int, int, int] = frames.shape
        self.path: str | None = None
        self._frames: np.ndarray | None = frames
        self._finalizer = None
        self._is_closed = self._hands_over = False

    @classmethod
    def create_file(
        cls,
        chunks: Iterable[np.ndarray | torch.Tensor],
        limit_bytes: int,
        directory: str | os.PathLike | None = None,
        hand_over: bool = False,
    ) -> "FrameSource":
        """Write frames to a new temporary file and return the source that owns it.

        Args:
            chunks: uint8 arrays or CPU tensors (n, 3, H, W), H and W the same for all; at least one frame in total.
            limit_bytes: largest size of the file.
            directory: where to put it; None is the system's temporary folder.
            hand_over: pickling the source gives the file away: the copy owns it, and removes it.

        Raises:
            ValueError: wrong shape or type, no frame, or more than `limit_bytes`; the file is gone then.
        """
        descriptor, path = tempfile.mkstemp(suffix=".frames", dir=directory)
        count, picture = 0, None
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    chunk = np.asarray(chunk)
                    _check_frames(chunk)
                    if picture is not None and chunk.shape[1:] != picture:
                        raise ValueError(
                            f"chunk of shape {chunk.shape} after frames of shape {picture}; fit all frames to one size"
                        )
                    picture = chunk.shape[1:]
                    count += len(chunk)
                    size = count * int(np.prod(picture))
                    if size > limit_bytes:
                        raise ValueError(
                            f"{count} frames of shape {picture} take {size} bytes, over limit_bytes={limit_bytes};"
                            " raise the limit, sample fewer frames, or make them smaller"
                        )
                    file.write(np.ascontiguousarray(chunk).data)
            if not count:
                raise ValueError("no frames were given; a FrameSource holds at least one")
        except BaseException:
            os.unlink(path)
            raise
        source = cls._open_file(os.path.abspath(path), (count, *picture))
        source._finalizer = weakref.finalize(source, _remove_file, source.path, os.getpid())
        source._hands_over = hand_over
        return source

    @classmethod
    def _receive_file(cls, path: str, shape: tuple[int, int, int, int]) -> "FrameSource":
        source = cls._open_file(path, shape)
        source._finalizer = weakref.finalize(source, _remove_file, path, os.getpid())
        source._hands_over = True
        return source

    @classmethod
    def _open_file(cls, path: str, shape: tuple[int, int, int, int]) -> "FrameSource":
        source = cls.__new__(cls)
        source.shape, source.path = shape, path
        source._frames, source._finalizer, source._is_closed, source._hands_over = None, None, False, False
        return source

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> torch.Tensor:
        """Return frames `index.start` to `index.stop` as a new uint8 tensor (j - i, 3, H, W) on the host."""
        if not isinstance(index, slice):
            raise TypeError(f"index {index!r} must be a slice such as frames[0:8]; use frames[i:i + 1] for one frame")
        if index.step not in (None, 1):
            raise ValueError(f"step {index.step} is not supported; slice whole ranges such as frames[0:8]")
        if self._is_closed:
            raise ValueError("this FrameSource is closed; keep it open for as long as its frames are needed")
        if self._frames is None:
            self._frames = np.memmap(self.path, dtype=np.uint8, mode="r", shape=self.shape)
        start, stop, _ = index.indices(len(self))
        # A copy: the file is read-only, and nobody may change what a later pass reads again.
        return torch.from_numpy(np.array(self._frames[start : max(start, stop)]))

    # Without this, Python would try to iterate by integers and fail one step later with a less clear message.
    __iter__ = None

    def __enter__(self) -> "FrameSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple:
        if self._is_closed:
            raise ValueError("a closed FrameSource cannot be pickled")
        if self.path is None:
            return type(self), (self._frames,)
        if self._hands_over and self._finalizer is not None and self._finalizer.detach():
            return type(self)._receive_file, (self.path, self.shape)
        return type(self)._open_file, (self.path, self.shape)

    def __repr__(self) -> str:
        return f"FrameSource(shape={self.shape}, path={self.path!r})"

    def close(self) -> None:
        """Let go of the frames; the owner removes the file. Closing twice is fine."""
        self._is_closed = True
        self._frames = None
        if self._finalizer is not None:
            self._finalizer()


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}; they must be uint8 (F, 3, H, W), channels before height"
        )


def _remove_file(path: str, owner: int) -> None:
    # A forked child inherits the finalizer, but not the file.
    if os.getpid() == owner and os.path.exists(path):
        os.unlink(path)
