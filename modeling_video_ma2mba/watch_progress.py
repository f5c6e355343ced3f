"""`WatchProgress`: a bar for one video: seconds seen, how many times faster than real time, memory of the process."""

import os
import sys
import time

from tqdm import tqdm


class WatchProgress:
    """A context. `total` is the seconds to see, None where nobody knows; `seen` of them were seen before."""

    def __init__(self, name: str, total: float | None, seen: float, is_shown: bool):
        self.bar = tqdm(
            total=None if total is None else max(total, seen),
            initial=seen,
            desc=name,
            file=sys.stderr,
            disable=None if is_shown else True,  # None: where nobody looks at a terminal, nothing is drawn
            bar_format="{desc}: {bar:20} {n:.0f} of {total:.0f} s [{elapsed}<{remaining}{postfix}]"
            if total is not None
            else "{desc}: {n:.0f} s [{elapsed}{postfix}]",
        )
        self.initial = seen
        self.began = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def show(self, seconds: float, dropped: int) -> None:
        """Show the seconds seen in all, and frames lost."""
        if self.bar.disable:
            return
        speed = (seconds - self.initial) / max(time.monotonic() - self.began, 1e-9)
        text = f"{speed:.1f}x real time, {process_bytes() / 2**20:.0f} MiB"
        self.bar.set_postfix_str(text + (f", {dropped} frames dropped" if dropped else ""), refresh=False)
        self.bar.update(seconds - self.bar.n)


def process_bytes() -> int:
    """Return the bytes of main memory this process holds: now on Linux, at most so far elsewhere, else 0."""
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0
