"""Write one benchmark's answer as JSON: what was asked, on what hardware, with which versions, and the rows.

Not here: measuring, or deciding whether a result is right; each benchmark does that before it calls this.

    from result import write_result
    write_result("scan", {"tokens": 2048}, [{"heads": 32, "seconds": 0.2}])
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch",
    "transformers",
    "av",
    "numpy",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
    "datasets",
    "peft",
    "decord",
)


def write_result(question: str, settings: dict, rows: list[dict]) -> Path:
    """Write results/<question>_<hardware>_<yyyymmdd>.json and return its path; the same day's file is replaced.

    `settings` holds what is needed to measure again, `rows` the measurements, both as plain data.
    Raises ValueError where question cannot be part of a file name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", question):
        raise ValueError(f"question={question!r}; use lower-case letters, digits, - and _, as in 'scan'")
    now = datetime.now(UTC)
    slug, hardware = describe_hardware()
    result = {"question": question, "date": now.isoformat(timespec="seconds"), "commit": git_commit()}
    result |= {"hardware": hardware, "versions": versions(), "settings": settings, "rows": rows}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{question}_{slug}_{now:%Y%m%d}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def describe_hardware() -> tuple[str, dict]:
    """Return a short name such as cpu2 or h200, and processor, cores and GPU."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = {"cpu": models[0] if models else platform.machine(), "cores": cores, "gpu": gpu}
    slug = re.sub(r"[^a-z0-9]", "", gpu.lower().replace("nvidia", "")) if gpu else f"cpu{cores}"
    return slug, hardware


def versions() -> dict[str, str]:
    """Return Python's version and those of `PACKAGES` that are installed."""
    installed = {(d.name or "").replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{name: installed[name] for name in PACKAGES if name in installed}}


def git_commit() -> dict:
    """Return the commit and whether tracked files differ from it; None where this is no git checkout."""

    def git(*arguments):
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": commit and bool(git("status", "--porcelain", "--untracked-files=no"))}
