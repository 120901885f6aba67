"""Blocks of images as Ray tasks; rows and pictures come back to the one process that writes the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from unconv.errors import UnconvError
from unconv.evaluate.budget import Clock
from unconv.evaluate.evaluation import Job, Part, Plan, Previous, compute_block
from unconv.evaluate.network import Network
from unconv.images import ImageStream

RETRIES = 10  # of a block whose worker or node has died
Work = tuple[range, list[Job], Previous]


class RayCluster:
    """A Ray cluster: a local one of all cores or GPUs, or one that runs already."""

    def __init__(self, address: str | None = None) -> None:
        """Connect; ``address``: ``None`` or ``"local"`` starts one on this machine."""
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UnconvError("Ray is not installed; pip install 'unconv[ray]', or leave out ray") from None
        self.ray: Any = ray
        self.started = not ray.is_initialized()
        if self.started:
            local = address in {None, "", "local"}
            where = {"address": "local", "include_dashboard": False} if local else {"address": address}
            try:
                self.ray.init(log_to_driver=False, **where)
            except (ConnectionError, RuntimeError, ValueError) as error:
                line = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UnconvError(f"there is no Ray cluster at {address!r} ({line})") from None

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self.started:
            self.ray.shutdown()

    def map(
        self, network: Network, images: ImageStream, plan: Plan, work: Sequence[Work], clock: Clock
    ) -> Iterator[Part]:
        """Yield the parts of blocks as they are finished; Ray restarts what is lost with a worker or a node."""
        ray = self.ray
        gpus = 1 if network.device.type == "cuda" else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(_compute)
        shared = [ray.put(item) for item in (network.portable(), images.absolute(), plan)]
        waiting = [task.remote(*shared, *item) for item in work]
        try:
            while waiting and clock.left() > 0:
                left = clock.left()
                done, waiting = ray.wait(waiting, num_returns=1, timeout=None if left == float("inf") else left)
                for finished in done:
                    yield from self._result(finished)
        finally:
            for unfinished in waiting:
                ray.cancel(unfinished, force=True)

    def _result(self, finished: Any) -> list[Part]:
        try:
            return self.ray.get(finished)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UnconvError):
                raise error.cause from None
            raise
        except self.ray.exceptions.RayError as error:
            line = str(error).splitlines()[0]
            raise UnconvError(f"Ray lost a block of images for good: {line}; run the same again to go on") from None


def _compute(
    network: Network, images: ImageStream, plan: Plan, block: range, jobs: list[Job], previous: Previous
) -> list[Part]:
    torch.set_num_threads(1)
    return list(compute_block(network, images, block, jobs, plan, previous))
