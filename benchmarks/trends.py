"""The paper's two trends with the small model: more frames and stage 1.5, by length of video; and far longer videos.

    python benchmarks/trends.py --work runs/trends --stage1 runs/tiny/stage1 --stage1-5 runs/tiny/stage1_5 \\
        --model runs/tiny/stage2

A: stage 2 trained and asked with every frame (1 FPS), or with 32, 16 or 8 frames, uniformly, of longer videos.
B: stage 2 started from stage 1.5's output, or from stage 1's. C: a finished model (64 frames at most in training) on
videos up to 8 times as long. Questions have held-out wordings and combinations. Each seed has training data, order of
training and questions of its own. Arms with one start, data and questions differ in nothing else.

Intervals are Wilson's, 95 %, over the questions of all seeds together: they say how sure the score of these trained
models is, not how much a training by chance differs from the next; for that look at the scores of each seed.

A study that was stopped goes on where it was. Several processes may share `--work`, each with arms of its own
(`--arms`); then `--collect` writes the result of what is there.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from result import ROOT, git_commit, write_result

from modeling_video_ma2mba.eval.scene_answers import Answer, evaluate, read_questions
from modeling_video_ma2mba.eval.scene_scores import constant_baseline, summary, training_questions
from modeling_video_ma2mba.processing.load_model import check_model, load_model
from modeling_video_ma2mba.train.checkpoints import last_complete_checkpoint, read_state
from modeling_video_ma2mba.train.make_synthetic_data import FRAMES, Plan, write_data
from modeling_video_ma2mba.train.recipes import load_recipe
from modeling_video_ma2mba.train.scene_questions import TYPES

PARTS = ("A", "B", "C")
LENGTHS = {"short": (16, 32, 64), "long": (64, 128, 256, 512)}  # frames of the videos asked about: A and B; C
QUESTION_SEED = 1000  # added to a seed; the questions of a trained model's own report have 0
STARTS = ("stage1", "stage1_5", "model")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make a model and to ask it.

    Attributes:
        name: in file names. label: in tables and figures.
        parts: of `PARTS`.
        start: of `STARTS`: the model that stage 2 starts from, or, "model", that is asked as it is; None: no model,
            each question gets the most frequent training answer to its form.
        max_frames: longer videos are sampled at so many, in training and asking; None: every frame.
    """

    name: str
    label: str
    parts: tuple[str, ...]
    start: str | None
    max_frames: int | None = None

    @property
    def is_trained(self) -> bool:
        return self.start in ("stage1", "stage1_5")

    @property
    def questions(self) -> str:
        return "long" if "C" in self.parts else "short"


ARMS = (
    Arm(name="every-frame", label="every frame", parts=("A", "B"), start="stage1_5"),
    *(Arm(name=f"{n}-frames", label=f"{n} frames", parts=("A",), start="stage1_5", max_frames=n) for n in (32, 16, 8)),
    Arm(name="without-stage-1.5", label="every frame, no stage 1.5", parts=("B",), start="stage1"),
    Arm(name="constant", label="most frequent answer", parts=("A", "B"), start=None),
    Arm(name="model-every-frame", label="every frame", parts=("C",), start="model"),
    *(
        Arm(name=f"model-{n}-frames", label=f"{n} frames", parts=("C",), start="model", max_frames=n)
        for n in (64, 32, 16, 8)
    ),
    Arm(name="model-constant", label="most frequent answer", parts=("C",), start=None),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input or a training that failed."""
    options = _parser().parse_args(arguments)
    try:
        run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"trends: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and answers; 10 GB")
    for start, what in zip(STARTS, ("stage 1's output", "stage 1.5's output", "the finished model of part C")):
        parser.add_argument(f"--{start.replace('_', '-')}", metavar="DIR", help=what)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    names = [arm.name for arm in ARMS]
    parser.add_argument("--arms", nargs="+", choices=names, default=names, help="of these parts (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of A and B (default: 0 1)")
    parser.add_argument("--videos", type=int, default=6000, help="of a training (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of a training (default: every video once)")
    parser.add_argument("--questions", type=int, default=360, help="for each length (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of an arm, a core each (default: %(default)s)")
    parser.add_argument("--collect", action="store_true", help="only write the result of the arms that are done")
    parser.add_argument("--output", type=Path, help="the result's file (default: benchmarks/results, named as others)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Run the chosen arms that are not done, then write the result if nothing is left of the chosen parts.

    Raises:
        ValueError, OSError: options or folders that cannot be used, or other settings than the folder's.
        RuntimeError: a training failed.
    """
    parts = [arm for arm in ARMS if set(arm.parts) & set(options.parts)]
    if not options.collect:
        chosen = [arm for arm in parts if arm.name in options.arms]
        check(options, chosen)
        keep_settings(options)
        torch.set_num_threads(options.processes)
        for arm, seed in _with_seeds(chosen, options.seeds):
            run_arm(options, arm, seed)
    records, missing = [], []
    for arm, seed in _with_seeds(parts, options.seeds):
        path = _record(options.work, arm, seed)
        if path.is_file():
            records.append(json.loads(path.read_text(encoding="utf-8")))
        else:
            missing.append(path.stem)
    if missing:
        print(f"not done yet: {', '.join(missing)}", flush=True)
    if not records:
        raise ValueError(f"no arm is done in {options.work}: run without --collect first")
    if missing and not options.collect:
        print("no result was written; --collect writes one of what is there", flush=True)
        return
    settings = json.loads((options.work / "study.json").read_text(encoding="utf-8"))
    settings |= {"seeds": options.seeds, "lengths": LENGTHS, "training_lengths": FRAMES["2"]}
    path = write_result("trends", settings | {"recipe": load_recipe("tiny", "2").as_dict()}, join(records))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        path = shutil.move(path, options.output)
    print(f"wrote {path}")


def check(options: argparse.Namespace, arms: list[Arm]) -> None:
    """Refuse what cannot be run before anything is done; raises ValueError."""
    if not arms:
        raise ValueError(f"none of --arms {' '.join(options.arms)} is of --parts {' '.join(options.parts)}")
    if options.questions < 1 or options.questions % len(TYPES):
        raise ValueError(f"--questions {options.questions}: a multiple of {len(TYPES)}, the types of questions")
    batch = load_recipe("tiny", "2").global_batch_size
    if options.processes < 1 or batch % options.processes:
        raise ValueError(f"--processes {options.processes} must divide the recipe's batch of {batch}")
    for arm in arms:
        if arm.start is None:
            continue
        folder = getattr(options, arm.start)
        if folder is None:
            raise ValueError(f"arm {arm.name} needs --{arm.start.replace('_', '-')}, or leave it out with --arms")
        if not Path(folder).is_dir():
            raise ValueError(f"--{arm.start.replace('_', '-')} {folder}: no such folder")
        check_model(folder, "cpu")


def keep_settings(options: argparse.Namespace) -> None:
    """Write what all arms share to study.json; raises ValueError where it says otherwise."""
    path = options.work / "study.json"
    given = {name: getattr(options, name) for name in ("videos", "steps", "questions")}
    given |= {start: getattr(options, start) for start in STARTS if getattr(options, start) is not None}
    with locked(path):
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        differing = [f"{n} was {kept[n]!r}, is {given[n]!r}" for n in given if n in kept and kept[n] != given[n]]
        if differing:
            raise ValueError(
                f"{options.work} holds a study with other settings ({'; '.join(differing)}): give the same ones, or "
                "choose another --work"
            )
        _write_json(path, kept | given)


def run_arm(options: argparse.Namespace, arm: Arm, seed: int) -> None:
    """Train, ask and write the arm's record, unless it is there."""
    record = _record(options.work, arm, seed)
    with locked(record) as lock:
        if record.is_file():
            print(f"[{record.stem}] done before", flush=True)
            return
        data = questions_of(options, arm.questions, seed)
        trained = train(options, arm, seed, lock) if arm.is_trained else None
        print(f"[{record.stem}] asking", flush=True)
        if arm.start is None:
            answers = constant_baseline(training_questions(FRAMES["2"]), read_questions(data))
        else:
            folder = _model(options.work, arm, seed) if arm.is_trained else getattr(options, arm.start)
            model, processor = load_model(str(folder), "cpu", "float32")
            processor.max_frames = arm.max_frames
            answers = evaluate(model, processor, data)
        found = {"arm": arm.name, "seed": seed, "trained": trained, "commit": git_commit()}
        _write_json(record, found | {"answers": [vars(one) for one in answers]})
        print(f"[{record.stem}] {100 * summary(answers)['all']['accuracy']:.1f} % right", flush=True)


def train(options: argparse.Namespace, arm: Arm, seed: int, lock) -> dict:
    """Run stage 2, which goes on where it was stopped, and return its steps, seconds and processes.

    What it says goes to log.txt beside the model. `seconds` are those of all starts, with loading and measuring.

    Raises:
        RuntimeError: it failed; with the end of the log.
    """
    name, output = _record(options.work, arm, seed).stem, _model(options.work, arm, seed)
    plan = Plan(part="2", output=Path(), count=options.videos, frames=FRAMES["2"], seed=seed)
    data = make_data(options, f"training-{seed}", plan)
    batch = load_recipe("tiny", "2").global_batch_size // options.processes
    overrides = {"seed": seed, "max_frames": arm.max_frames, "max_steps": options.steps}
    # --standalone finds a free port: two arms may train side by side.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", options.processes]
    command += [ROOT / "train" / "stage2.py", "--recipe", "tiny", "--data", f"llava:{data}"]
    command += ["--init-from", getattr(options, arm.start), "--output", output, "--batch-size", batch]
    command += "--workers 1 --logging-steps 20 --report-to none --device cpu".split()
    for field, value in overrides.items():
        command += ["--override", f"{field}={value}"] if value is not None else []
    output.mkdir(parents=True, exist_ok=True)
    clock = output / "seconds.txt"
    before = float(clock.read_text()) if clock.is_file() else 0.0
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {
        "OMP_NUM_THREADS": "1",
        "TQDM_MININTERVAL": "10",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        "PYTHONPATH": paths,
    }
    print(f"[{name}] training", flush=True)
    start = time.perf_counter()
    with (
        open(output / "log.txt", "a+", buffering=1, encoding="utf-8") as log,
        # The launcher holds the lock too: should this process be killed, nobody trains beside what is left of it.
        subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
            pass_fds=(lock.fileno(),), encoding="utf-8", errors="replace",
        ) as process,
    ):  # fmt: skip
        for line in process.stdout:
            log.write(line)
            if line.startswith("{"):  # the Trainer's own lines: loss, share of the run
                print(f"[{name}] {line}", end="", flush=True)
                clock.write_text(str(before + time.perf_counter() - start))
        process.wait()
        if process.returncode:
            log.seek(0)
            end = "".join(log.readlines()[-50:])
            raise RuntimeError(
                f"[{name}] stage 2 failed (exit code {process.returncode}), {log.name} ends with\n{end}"
            )
    seconds = before + time.perf_counter() - start
    clock.write_text(str(seconds))
    steps = read_state(last_complete_checkpoint(output, options.processes))["global_step"]
    return {"steps": steps, "seconds": round(seconds, 1), "processes": options.processes}


def questions_of(options: argparse.Namespace, kind: str, seed: int) -> Path:
    """Return the annotations of the held-out questions of `LENGTHS[kind]`, made where they are missing."""
    frames = LENGTHS[kind]
    plan = Plan(
        part="evaluation",
        output=Path(),
        count=options.questions * len(frames),
        frames=frames,
        seed=QUESTION_SEED + seed,
    )
    return make_data(options, f"{kind}-{seed}", plan)


def make_data(options: argparse.Namespace, name: str, plan: Plan) -> Path:
    """Return the annotations of a plan, which is carried out once, into `--work`/data/name."""
    folder = options.work / "data" / name
    with locked(folder):
        if not folder.is_dir():
            part = folder.with_name(f"{name}.part")
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            print(f"[{name}] making data", flush=True)
            write_data(replace(plan, output=part), options.processes if options.processes > 1 else 0)
            part.rename(folder)
    return replace(plan, output=folder).annotations


@contextmanager
def locked(path: Path) -> Iterator:
    """Keep other processes out while `path` is made; yield the open lock file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"[{path.name}] another process is making it: waiting", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def join(records: list[dict]) -> list[dict]:
    """Return a row for each arm: settings, scores over all its seeds together, and of each seed.

    Args:
        records: as `run_arm` writes them, in any order.

    Returns:
        In the order of `ARMS`: "scores" as `scene_scores.summary` has them, "by_seed" the same without types.
    """
    rows = []
    for arm in ARMS:
        own = sorted((one for one in records if one["arm"] == arm.name), key=lambda one: one["seed"])
        if not own:
            continue
        answers = {one["seed"]: [Answer(**row) for row in one["answers"]] for one in own}
        of_seeds = {seed: summary(some) for seed, some in answers.items()}
        rows.append(
            {
                **vars(arm),
                "seeds": list(answers),
                "questions": sum(map(len, answers.values())),
                "scores": summary([one for some in answers.values() for one in some]),
                "by_seed": {seed: {key: s[key] for key in ("all", "by_frames")} for seed, s in of_seeds.items()},
                "trained": {one["seed"]: one["trained"] for one in own if one["trained"]},
                "commits": {one["seed"]: one["commit"] for one in own},
            }
        )
    return rows


def _with_seeds(arms: list[Arm], seeds: list[int]) -> list[tuple[Arm, int]]:
    """Return the arms of each seed, seed by seed; those of C have none to draw but their questions'."""
    all_seeds = dict.fromkeys([*seeds, 0])
    return [(arm, seed) for seed in all_seeds for arm in arms if seed in ([0] if "C" in arm.parts else seeds)]


def _record(work: Path, arm: Arm, seed: int) -> Path:
    return work / "arms" / f"{arm.name}-seed{seed}.json"


def _model(work: Path, arm: Arm, seed: int) -> Path:
    return work / "models" / _record(work, arm, seed).stem


def _write_json(path: Path, content: dict) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
