"""Kills runs by SIGKILL at drawn moments and lets the same command go on: the weights must be those of a whole run.

    python tests/torture.py [--kills 20] [--real 3] [--flips 6] [--seed 0] [--modes single ddp fsdp]

In some of the cases one bit of the newest training state is flipped after the kill, in one of its files, also in
`complete.json`. The command that goes on must name this state and not use it. In those cases the kill waits for the
first complete state of a drawn stage.

For one process, DDP and FSDP2 on two processes. Most runs are forks of a process that has everything imported, and
their ranks forks of them; the last few of each mode are the real command. Half of the kills hit the parent, half one of
its ranks where there are some. Ends with `60 of 60` and exit code 0 where all went on to the same bits.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import hydra
import torch
from safetensors.torch import load_file

from forked import end_ranks, start_ranks
from paths import ROOT
from sftmix.artifacts.tables import read_table
from sftmix.config.load import from_hydra
from sftmix.errors import StageError
from sftmix.stages import rank
from sftmix.stages.pipeline import run_pipeline

SMALL = (
    "data.demo.num_examples=200",
    "data.epochs=2",
    "data.num_checkpoints=3",
    "recipe.global_batch_size=8",
    "model.init.hidden_size=32",
    "model.init.vocab_size=400",
    "confidence.batch_tokens=300",
    "trainer.save_every_n_steps=3",
    "trainer.progress_bar=false",
    "logger=csv",
)
MODES = {
    "single": ("trainer=cpu",),
    "ddp": ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
    "fsdp": ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"),
}
PATIENCE = 600.0  # seconds until a run counts as hung


def launch_forks(module, content, device, stop_signal, meeting) -> int:
    """Do what `sftmix.distributed.launch.launch` does, with forks of this process as ranks."""
    root = Path(content["config"]["root"])
    folder = Path(tempfile.mkdtemp(prefix="torture-", dir=root))
    (root / "ranks.txt").unlink(missing_ok=True)
    started = start_ranks(device.num_local, lambda ranks: rank.run_content(content, ranks, None), folder)
    (root / "ranks.txt").write_text(" ".join(map(str, started)))
    codes = end_ranks(started, PATIENCE)
    print((folder / "rank-0.txt").read_text(), flush=True)
    if any(codes):
        printed = "".join((folder / f"rank-{k}.txt").read_text() for k in range(len(codes)))
        raise StageError(f"ranks ended with {codes}\n{printed}")
    shutil.rmtree(folder)
    return 0


def fork_run(overrides: tuple[str, ...], root: Path) -> int:
    """Start a run as a fork; its process id."""
    root.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    output = os.open(root / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        torch.set_num_threads(1)
        rank.launch = launch_forks
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = from_hydra(hydra.compose("config", [*overrides, f"root={root}"]))
        run_pipeline(config)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_command(overrides: tuple[str, ...], root: Path) -> int:
    """Start the real command; its process id."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "output.txt").open("ab") as output:
        command = [sys.executable, "train.py", *overrides, f"root={root}"]
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output).pid


def ended(pid: int, seconds: float) -> int | None:
    """The exit code of a child, or None where it is still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def whole(start, overrides: tuple[str, ...], root: Path) -> float:
    """Run to the end; the seconds that took."""
    begin = time.monotonic()
    code = ended(start(overrides, root), PATIENCE)
    assert code == 0, f"exit code {code}\n{(root / 'output.txt').read_text()[-4000:]}"
    return time.monotonic() - begin


def kill(
    start, overrides: tuple[str, ...], root: Path, after: float, draw: random.Random, states_of: str | None = None
) -> str:
    """Start a run, kill it or one of its ranks, and return the stage that was under way.

    Args:
        start: Starts the run.
        overrides: Of the run.
        root: Of the run.
        after: Seconds from the start, or from the first complete state of `states_of`.
        draw: Draws the process that is killed.
        states_of: Beginning of the name of the artifact whose states are waited for.
    """
    pid = start(overrides, root)
    while states_of and not any(root.glob(f"{states_of}-*.partial/states/*/complete.json")):
        if ended(pid, 0.005) is not None:
            return "over"
    code = ended(pid, after)
    if code is not None:
        return "over"
    stage = next((p.name.split("-")[0] for p in root.glob("*.partial")), "between")
    ranks = root / "ranks.txt"
    victims = [int(p) for p in ranks.read_text().split()] if ranks.is_file() else []
    victim = draw.choice(victims) if victims and draw.random() < 0.5 else pid
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    if ended(pid, 20.0) is None:
        raise AssertionError("a run whose rank was killed did not end within 20 seconds")
    return {"ntp": "reference", "sftmix": "target"}.get(stage, stage)


def differs(root: Path, expected: Path) -> str:
    """In what a root differs from that of a whole run; empty where it does not."""
    for name in ("ntp-*", "sftmix-*"):
        (mine,), (theirs,) = root.glob(name), expected.glob(name)
        got, want = (load_file(folder / "model/model.safetensors") for folder in (mine, theirs))
        if got.keys() != want.keys() or not all(torch.equal(got[key], want[key]) for key in want):
            return f"weights of {mine.name}"
        if (mine / "logs/metrics.csv").read_text().count("\n") != (theirs / "logs/metrics.csv").read_text().count("\n"):
            return f"figures of {mine.name}"
    (mine,), (theirs,) = root.glob("confidence-*"), expected.glob("confidence-*")
    if read_table(mine / "confidence.parquet") != read_table(theirs / "confidence.parquet"):
        return "confidence"
    left = [p.name for p in (*root.glob("*.partial"), *root.glob("*/states"))]
    return f"{left} left behind" if left else ""


def flip_bit(root: Path, draw: random.Random) -> Path | None:
    """Flip one bit in a file of the newest complete training state; the state's folder, or None if there is none."""
    complete = sorted(root.glob("*.partial/states/step-*/complete.json"), key=lambda file: file.parent.name)
    if not complete:
        return None
    state = complete[-1].parent
    file = draw.choice(sorted(state.iterdir()))
    content = bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    print(f"       bit {bit} of {state.name}/{file.name} flipped")
    return state


def used(root: Path, state: Path) -> str:
    """Return an empty text if the output names a damaged state and goes on from an earlier one or from the start."""
    output = (root / "output.txt").read_text()
    if f"{state.name}: damaged or incomplete, not used and removed" not in output:
        return f"{state.name} is not named"
    after = output.split(f"{state.name}: damaged", 1)[1]
    step = int(state.name.removeprefix("step-"))
    found = re.search(r"goes on after step (\d+)|no intact training state is left", after)
    return "" if found and (found.group(1) is None or int(found.group(1)) < step) else f"{state.name} was used"


def torture(mode: str, kills: int, real: int, flips: int, seed: int, folder: Path) -> int:
    """How many of the kills ended with the bits of a whole run."""
    draw = random.Random(f"{seed} {mode}")
    overrides = (*SMALL, *MODES[mode])
    good, stages, resumed, num_flipped = 0, Counter[str](), 0, 0
    for way, start, number in (("forks", fork_run, kills - real), ("command", start_command, real)):
        if not number:
            continue
        expected = folder / f"{mode}-{way}-whole"
        seconds = whole(start, overrides, expected)
        for k in range(number):
            root = folder / f"{mode}-{way}-{k}"
            moment, stage, flipped = seconds, "over", None
            flips_here = k >= number - (min(flips, number) if way == "forks" else min(flips, 1))
            while stage == "over" or (flips_here and flipped is None):  # it had come to its end: that is no kill
                moment = draw.uniform(0.0, moment)
                shutil.rmtree(root, ignore_errors=True)
                if flips_here:
                    stage = kill(start, overrides, root, moment / 20, draw, draw.choice(("ntp", "sftmix")))
                else:
                    stage = kill(start, overrides, root, moment, draw)
                flipped = flip_bit(root, draw) if flips_here and stage != "over" else None
            stages[stage] += 1
            whole(start, overrides, root)
            resumed += "goes on after step" in (root / "output.txt").read_text()
            problem = differs(root, expected) or (used(root, flipped) if flipped else "")
            num_flipped += flipped is not None and not problem
            good += not problem
            mark = problem or ("same bits, the damaged state was named and not used" if flipped else "same bits")
            print(f"{mode:<7}{way:<8}{good:>3} of {k + 1 if way == 'forks' else k + 1 + kills - real}  {stage}: {mark}")
            if not problem:
                shutil.rmtree(root)
    print(
        f"{mode}: killed in {dict(stages)}; {resumed} went on; {num_flipped} flipped bits named",
        flush=True,
    )
    return good


def main() -> int:
    """Torture each mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each mode")
    parser.add_argument("--real", type=int, default=3, help="of them by the real command")
    parser.add_argument("--flips", type=int, default=6, help="kills with a flipped bit: by forks, and a real one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    good = sum(torture(mode, given.kills, given.real, given.flips, given.seed, folder) for mode in given.modes)
    total = given.kills * len(given.modes)
    print(f"{good} of {total}")
    if good == total:
        shutil.rmtree(folder)
    else:
        print(f"what differed is kept in {folder}")
    return good != total


if __name__ == "__main__":
    sys.exit(main())
