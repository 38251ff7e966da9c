"""Two machines that train one run, and lose one another: how soon does each end, in how many lines, with what on disk?

The machines are network namespaces joined by a pair of virtual links, which needs Linux, root and iproute2:

    python tests/benchmarks/two_nodes.py                # all cases; the cut link takes the ten minutes that a network may be silent
    python tests/benchmarks/two_nodes.py worker apart   # these

Cases: `whole` nothing happens; `worker` the second machine's process is killed; `agent` so is its torchrun; `term` the second
machine's process gets SIGTERM; `sweep` the same in a sweep; `cut` the link goes down; `apart` the machines share no folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CASES = ("whole", "worker", "agent", "term", "sweep", "apart", "cut")
SHAPE = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 32 --batch-size 4 --eval-every 20 --save-every 10 --threads 1 --attention plain"
LIMIT_S = float(os.environ.get("LIMIT_S", 1200))
NETWORK = [
    "netns add mgn1", "netns add mgn2", "link add mgv1 type veth peer name mgv2",
    *(line for i in (1, 2) for line in (f"link set mgv{i} netns mgn{i}", f"-n mgn{i} addr add 10.77.0.{i}/24 dev mgv{i}",
                                        f"-n mgn{i} link set mgv{i} up", f"-n mgn{i} link set lo up")),
]  # fmt: skip


def ip(command: str, check: bool = True) -> None:
    """One call of iproute2."""
    subprocess.run(["ip", *command.split()], check=check, capture_output=not check)


@contextmanager
def network() -> Iterator[None]:
    """Two machines, 10.77.0.1 and 10.77.0.2."""
    try:
        for command in NETWORK:
            ip(command)
        yield
    finally:
        for i in (1, 2):
            ip(f"netns del mgn{i}", check=False)


def start(i: int, folder: Path, log: Path, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    """torchrun with one process on machine `i`."""
    rendezvous = (
        f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id {name} --rdzv-endpoint 10.77.0.1:29500 --local-addr 10.77.0.{i}"
    )
    host = f"--rdzv-conf is_host={2 - i}"
    command = ["ip", "netns", "exec", f"mgn{i}", sys.executable, "-m", "torch.distributed.run", *rendezvous.split(), *host.split()]
    settings = {"GLOO_SOCKET_IFNAME": f"mgv{i}", "OMP_NUM_THREADS": "1", "MINIGPT_RUNS_DIR": "runs", "MINIGPT_DATA_DIR": "data"}
    with open(log, "wb") as output:
        return subprocess.Popen(
            [*command, "-m", "minigpt_cli", "train", *arguments], cwd=folder, env=os.environ | settings, stdout=output, stderr=output
        )


def worker(agent: subprocess.Popen[bytes]) -> int:
    """The process that trains under a torchrun."""
    return int(subprocess.run(["ps", "-o", "pid=", "--ppid", str(agent.pid)], capture_output=True, text=True, check=True).stdout.split()[0])


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def disturb(case: str, agents: list[subprocess.Popen[bytes]]) -> None:
    """What happens to the second machine in this case."""
    if case == "cut":
        ip("-n mgn2 link set mgv2 down")
    elif case in ("worker", "agent"):
        trains = worker(agents[1])
        if case == "agent":
            agents[1].kill()
        os.kill(trains, signal.SIGKILL)
    elif case in ("term", "sweep"):
        os.kill(worker(agents[1]), signal.SIGTERM)


def ours(log: Path) -> list[str]:
    """Our errors and warnings in a log, and what lies in our files of any traceback: torchrun's own words are not ours."""
    lines, in_traceback = [], False
    for line in log.read_text("utf-8", "replace").splitlines():
        if line.startswith("Traceback"):
            in_traceback = True
        if not in_traceback and line.startswith(("Error", "Warning")):
            lines.append(line)
        if in_traceback and "minigpt_cli/" in line:
            lines.append(line)
        if in_traceback and line and not line.startswith((" ", "Traceback")):
            in_traceback = False
    return lines


def run(case: str, home: Path) -> None:
    """One case, and a line for what came of it on each machine."""
    logs = [home / f"log{i}" for i in (1, 2)]
    folders = [home / f"machine{i}" if case == "apart" else home for i in (1, 2)]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "text.txt").write_text("".join(f"{i} the quick brown fox jumps over the lazy dog\n" for i in range(900)))
    steps = "40" if case in ("whole", "apart") else "200000"
    more = ["--seeds", "2"] if case == "sweep" else []
    arguments = ["text.txt", "--name", "run", *SHAPE.split(), "--max-steps", steps, *more]
    with network():
        agents = [start(i, folder, log, f"{case}{os.getpid()}", arguments) for i, folder, log in zip((1, 2), folders, logs, strict=True)]
        try:
            deadline = time.monotonic() + 300
            while case not in ("whole", "apart") and not re.search(r"step +40/", logs[0].read_text("utf-8", "replace")):
                if time.monotonic() > deadline or any(agent.poll() is not None for agent in agents):
                    break
                time.sleep(0.2)
            trains = [] if case in ("whole", "apart") else [worker(agent) for agent in agents]
            disturb(case, agents)
            begun, ends, worker_ends = time.monotonic(), dict[int, float](), dict[int, float]()
            while len(ends) < 2 and time.monotonic() - begun < LIMIT_S:
                now = time.monotonic() - begun
                ends |= {i: now for i, agent in enumerate(agents) if i not in ends and agent.poll() is not None}
                worker_ends |= {i: now for i, pid in enumerate(trains) if i not in worker_ends and has_ended(pid)}
                time.sleep(0.1)
        finally:
            for agent in agents:
                with suppress(ProcessLookupError):
                    agent.kill()
    records = {path.parent.name: json.loads(path.read_text()) for path in sorted(folders[0].glob("runs/*/run.json"))}
    saved = {name: (record["status"], record["stop_step"]) for name, record in records.items()}
    for i, (agent, log) in enumerate(zip(agents, logs, strict=True)):
        late = float("nan")
        when = f"minigpt ended after {worker_ends.get(i, late):5.1f} s, torchrun after {ends.get(i, late):5.1f} s with {agent.returncode}"
        print(f"{case:7} machine {i + 1}: {when}; ours: {ours(log)}; saved {saved}", flush=True)


def main() -> None:
    """The cases named on the command line, or all."""
    for case in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as home:
            run(case, Path(home))
            if os.environ.get("KEEP_LOGS"):
                for i in (1, 2):
                    print((Path(home) / f"log{i}").read_text("utf-8", "replace"))


if __name__ == "__main__":
    main()
