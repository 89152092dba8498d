"""`clipkit embed` by workers of Ray, on this machine or on all of a cluster.

Each worker has the model and the source open and makes whole partitions, which it writes itself; what runs
here hands them out and finishes the folder. A partition whose worker is lost is made again.
"""

from __future__ import annotations

import os
import platform
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import clipkit
from clipkit.console import progress

from .embed import EmbedReport, Job
from .embed_clock import Clock, rates
from .embed_settings import EmbedSettings, RaySettings

_NUM_TRIES = 3


def embed_with_ray(
    location: str,
    model: str,
    out: Path,
    settings: EmbedSettings,
    ray_settings: RaySettings,
    *,
    num_workers: int | None = None,
    show: bool = False,
) -> EmbedReport:
    """`embed` by workers of Ray; the folder is the same, byte for byte, on processors of one kind.

    Args:
        location: see `embed`; all machines read it under the same path.
        model: what `clipkit.load` takes; it must be the same one on all machines.
        out: the folder, on a disk that all machines write to.
        settings: what is written.
        ray_settings: where.
        num_workers: processes that decode, for each worker; by default one, and with a GPU one a core of
            its share.
        show: whether progress is shown.

    Raises:
        ValueError: as in `embed`, or a machine has other data or another model.
        OSError: as in `embed`, or Ray is not installed, cannot be reached, or loses too many workers.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--engine ray starts its workers itself: run it without torchrun")
    location = "::".join(os.path.abspath(os.path.expanduser(part)) for part in location.split("::"))
    out = Path(os.path.abspath(out))
    if Path(model).exists():
        model = os.path.abspath(model)
    job = Job.open(location, clipkit.load(model), out, settings, show=show)
    with job.folder.started(job.about(model)):
        partitions = [
            number for number in range(job.plan.num_partitions) if job.folder.record(number) is None
        ]
        facts = torch.zeros(1, len(Clock().facts()[0]), dtype=torch.float64)
        if partitions:
            arguments = (location, model, out, settings, job.facts)
            with _connected(ray_settings.ray_address) as ray:
                machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                share = _share(machines, ray_settings.ray_workers, len(partitions))
                if num_workers is None:
                    num_workers = max(1, int(share.num_cpus)) if share.num_gpus else 1
                workers = _start_workers(ray, share, (*arguments, num_workers))
                facts = _make(ray, workers, partitions, job, show=show)
        manifest = job.folder.finish(job.about(model), job.source.source.problems)
    return job.report(manifest, num_made=len(partitions), rates=rates(facts))


class Worker:
    """What runs on a machine of the cluster."""

    def __init__(
        self,
        location: str,
        model_name: str,
        out: Path,
        settings: EmbedSettings,
        facts: Mapping[str, Any],
        num_workers: int,
    ) -> None:
        """Say what is to be made.

        Args:
            location: of the source.
            model_name: what `clipkit.load` takes.
            out: the folder, which is there already.
            settings: what is written.
            facts: what `Job.facts` has to be here too.
            num_workers: processes that decode.
        """
        self._location, self._model_name, self._out, self._settings = location, model_name, out, settings
        self._facts, self._num_workers = facts, num_workers
        self._job: Job | None = None

    def _opened(self) -> Job:
        """The job, of the first call: what goes wrong in a constructor reaches nobody as it was raised."""
        if self._job is not None:
            return self._job
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray shows a worker its own GPU alone
        model = clipkit.load(self._model_name, device=device)
        job = Job.open(self._location, model, self._out, self._settings)
        for name, value in self._facts.items():
            if job.facts[name] != value:
                raise ValueError(
                    f"{platform.node()} has {name} {job.facts[name]}, but this run {value}: all machines "
                    "need the same data and model"
                )
        self._job = job
        return job

    def open(self) -> None:
        """Have everything ready."""
        self._opened()

    def make(self, partition: int) -> Tensor:
        """Make and write a partition; returns `Clock.facts`."""
        clock = Clock()
        self._opened().make([partition], clock, num_workers=self._num_workers)
        return clock.facts()


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, started on this machine or connected to a cluster; one that is connected already stays so."""
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise OSError("--engine ray needs ray: pip install 'clipkit[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    try:
        _check_reachable(address or "local")
        ray.init(
            address="local" if address is None else address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level="error",
        )
    except OSError as error:
        raise OSError(f"no Ray cluster at {address}: {error}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise an OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@dataclass(frozen=True, kw_only=True)
class _Share:
    """How many workers there are, and what each has."""

    count: int
    num_cpus: float
    """Ray has PyTorch use as many threads, at least one."""
    num_gpus: float


def _share(machines: Sequence[Mapping[str, float]], wanted: int | None, num_partitions: int) -> _Share:
    """One worker for each GPU, without any one for each machine; more share them, none is without work.

    Args:
        machines: what Ray has on each.
        wanted: workers, None for the default.
        num_partitions: to be made.

    Raises:
        ValueError: there is nothing to run on.
    """
    with_gpu = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    used = with_gpu or [machine for machine in machines if machine.get("CPU", 0) >= 1]
    if not used:
        raise ValueError("the Ray cluster has no CPU to run on: start a node with one")
    units = [int(machine["GPU"]) if with_gpu else 1 for machine in used]
    count = min(wanted or sum(units), num_partitions)
    sharing = -(-count // sum(units))
    cores = min(machine.get("CPU", 0) / number for machine, number in zip(used, units, strict=True)) / sharing
    return _Share(
        count=count,
        num_cpus=float(int(cores)) if cores >= 1 else cores,
        num_gpus=1 / sharing if with_gpu else 0.0,
    )


def _start_workers(ray: Any, share: _Share, arguments: tuple[Any, ...]) -> list[Any]:
    """Workers that Ray starts again, with the call they were at, when they are lost."""
    remote = ray.remote(Worker).options(
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus,
        max_restarts=_NUM_TRIES - 1,
        max_task_retries=_NUM_TRIES - 1,
        scheduling_strategy="SPREAD",
    )
    return [remote.remote(*arguments) for _ in range(share.count)]


def _make(ray: Any, workers: Sequence[Any], partitions: Sequence[int], job: Job, *, show: bool) -> Tensor:
    """Have all partitions made, each by the first worker that is free; facts of each worker, see `rates`."""
    spent: dict[Any, Tensor] = defaultdict(lambda: torch.zeros_like(Clock().facts()))
    waiting = list(reversed(partitions))
    num_left = len(partitions)
    # A worker gets work once it is up: no partition waits for one that the cluster has no room for.
    running: dict[Any, tuple[Any, int | None]] = {worker.open.remote(): (worker, None) for worker in workers}
    total = sum(len(job.plan.samples(partition)) for partition in partitions)
    with progress(f"embed, {len(workers)} workers", total, show=show) as meter:
        while num_left:
            (done,), _ = ray.wait(list(running), num_returns=1)
            worker, made = running.pop(done)
            facts = _result(ray, done)
            if made is not None:
                spent[worker] += facts
                num_left -= 1
                meter.advance(len(job.plan.samples(made)))
            if waiting:
                partition = waiting.pop()
                running[worker.make.remote(partition)] = (worker, partition)
    return torch.cat(list(spent.values()))


def _result(ray: Any, reference: Any) -> Any:
    """What a worker's method returned.

    Raises:
        ValueError, OSError: as the worker raised it, or the worker was lost again and again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise OSError(f"a worker of Ray was lost {_NUM_TRIES} times: {error}") from None
