"""Who runs a study's workers: this machine, Slurm, or a Ray cluster. All of them run `work`, which needs no more.

    run_here(folder, jobs=2, watch=print_table)

Workers take tasks from the folder by themselves, so that an executor only starts them and starts dead ones anew.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from toughen.errors import Command
from toughen.parallel.ranks import cores
from toughen.studies.folder import StudyFolder
from toughen.studies.text import StudyError

ATTEMPTS = 3
"""How often a worker that died is started in all, without a task finished in between."""


def run_here(
    folder: StudyFolder,
    *,
    jobs: int,
    shard: tuple[int, int] = (0, 1),
    watch: Callable[[], None] = lambda: None,
    poll: float = 1.0,
) -> None:
    """Run workers as processes of this machine until they end.

    Each has a GPU to itself where there are any (by number, in turn), else an even share of the cores.

    Args:
        folder: of the study.
        jobs: workers.
        shard: see `work`.
        watch: called about every second.
        poll: seconds between looks.

    Raises:
        StudyError: a worker died `ATTEMPTS` times without finishing a task.
    """
    workers = [_Worker(folder.path, shard, _environment(number, jobs)) for number in range(jobs)]
    deaths, finished = 0, _finished(folder)
    try:
        while any(worker.running for worker in workers):
            watch()
            time.sleep(poll)
            for worker in workers:
                if worker.died:
                    now = _finished(folder)
                    deaths, finished = (1 if now > finished else deaths + 1), now
                    if deaths >= ATTEMPTS * jobs:
                        raise StudyError(
                            f"Workers died {deaths} times in a row without finishing a task (exit code "
                            f"{worker.process.returncode}); see {folder.path / 'workers.log'}"
                        )
                    worker.start()
        watch()
    finally:
        for worker in workers:
            worker.stop()


def _finished(folder: StudyFolder) -> int:
    return sum(folder.done(task) or folder.failure(task) is not None for task in folder.tasks())


def _environment(number: int, jobs: int) -> dict[str, str]:
    variable, gpus = visible_gpus()
    if gpus:
        return {**os.environ, variable: gpus[number % len(gpus)]}
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs)))}


def visible_gpus() -> tuple[str, Sequence[str]]:
    """Numbers or names of the GPUs that this process may use, and the variable that shows a process some of them.

    None on MPS: there is one of Apple's, which all workers share.
    """
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return "CUDA_VISIBLE_DEVICES", [name for name in given.split(",") if name.strip() not in ("", "-1")]
    from toughen.devices import HIDING, best, count

    kind = best().type
    if kind not in HIDING:
        return "", []
    variable = HIDING[kind][0]
    given = os.environ.get(variable)
    return variable, given.split(",") if given else [str(number) for number in range(count(kind))]


class _Worker:
    """A process that runs `toughen study work`."""

    def __init__(self, path: Path, shard: tuple[int, int], environment: dict[str, str]) -> None:
        # -P: a file beside where the user stands must not be taken for a module.
        work = Command("study", "work", path, shard=f"{shard[0] + 1}/{shard[1]}")
        self._command = [sys.executable, "-P", "-m", *work.words]
        self._folder, self._shard = StudyFolder(path), shard
        self._log, self._environment = path / "workers.log", environment
        self.start()

    def start(self) -> None:
        """Start the process, anew where it died."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    @property
    def running(self) -> bool:
        """Whether it is at work, or died and will be started anew."""
        return self.process.poll() is None or self.died

    @property
    def died(self) -> bool:
        """Whether it ended otherwise than by finding nothing left to do, which is no death where rows have failed."""
        from toughen.studies.worker import tasks_left

        return self.process.poll() not in (None, 0) and bool(tasks_left(self._folder, self._shard))

    def stop(self) -> None:
        """End the process, if it runs."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def run_on_slurm(folder: StudyFolder, *, jobs: int, parameters: Mapping[str, str | int]) -> list[str]:
    """Submit workers to Slurm (extra `slurm`) and return; `study status` tells how far they are.

    Args:
        folder: of the study, on a disk that the nodes share.
        jobs: workers.
        parameters: submitit's, such as slurm_partition or timeout_min; {"cluster": "local"} runs them as processes.

    Returns:
        The jobs' numbers.

    Raises:
        ValueError: submitit is not installed.
    """
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("executor slurm needs submitit; pip install 'toughen[slurm]'") from None
    given = dict(parameters)
    executor = submitit.AutoExecutor(folder=folder.path / "slurm", cluster=given.pop("cluster", None))
    executor.update_parameters(name="toughen", **given)
    submitted = [executor.submit(run_worker, str(folder.path)) for _ in range(jobs)]
    return [job.job_id for job in submitted]


def run_on_ray(folder: StudyFolder, *, jobs: int, address: str | None, watch: Callable[[], None]) -> None:
    """Run workers on a Ray cluster (extra `ray`) until they end; a worker that dies is started anew.

    Args:
        folder: of the study, on a disk that the nodes share.
        jobs: workers.
        address: of the cluster; None for a local one.
        watch: called about every second.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("executor ray needs Ray; pip install 'toughen[ray]'") from None
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    try:
        gpu = 1 if ray.cluster_resources().get("GPU", 0) else 0
        remote = ray.remote(max_retries=ATTEMPTS - 1, num_gpus=gpu, num_cpus=1)(run_worker)
        left = [remote.remote(str(folder.path)) for _ in range(jobs)]
        while left:
            watch()
            ended, left = ray.wait(left, num_returns=len(left), timeout=1.0)
            ray.get(ended)
        watch()
    finally:
        ray.shutdown()


def run_worker(path: str) -> None:
    """A worker, as something that other machines can import."""
    from toughen.studies.worker import work

    work(Path(path))
