"""What the two sides of the connector send each other: plans down, reports up. The content is Rust's."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass(frozen=True)
class PromisedLoad:
    """A load that the engine counts on, so that it can be reported as failed whatever happens to the plan."""

    request_id: str
    asynchronous: bool
    block_ids: tuple[int, ...]
    lost: bool = False
    """It is known already that nothing will be loaded: report it as failed."""


@dataclass
class StepMetadata(KVConnectorMetadata):
    """One step's work."""

    plan: bytes | None = None
    promised: tuple[PromisedLoad, ...] = ()
    finish_in_step: bool = False
    """Nobody holds the source blocks: offloads must end before the step does."""
    retired: bool = False
    """The scheduler side has given up: end everything, and say so once."""
    forward: bool = True
    """Whether the step computes anything. Before 0.31, vLLM has no hook at the end of a step that does not."""


EMPTY_STEP = StepMetadata()
"""The metadata of most steps: there is nothing to do."""

IDLE_STEP = StepMetadata(forward=False)
"""The metadata of a step that only sees to jobs in flight."""


@dataclass
class WorkerReports(KVConnectorWorkerMetadata):
    """The ranks' reports of one step."""

    reports: list[bytes] = field(default_factory=list)
    broken: bool = False
    """A rank has given up."""
    drained_ranks: int = 0
    """Ranks that have nothing in flight any more, now that the scheduler side has given up."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "WorkerReports":
        """Returns both ranks' reports together."""
        assert isinstance(other, WorkerReports)
        return WorkerReports(
            self.reports + other.reports, self.broken or other.broken, self.drained_ranks + other.drained_ranks
        )
