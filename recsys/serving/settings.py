"""What a server is started with."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """Where the model and the journal lie, and the bounds that keep one caller from hurting the others."""

    bundle: str  # a folder, a run folder or models:/name@alias
    journal: Path
    max_body_bytes: int = 4 << 20
    max_in_flight: int = 256  # requests of /v1 at a time; more are answered 503 with Retry-After
    max_history_events: int = 20_000  # of a user, the last ones; older items may be recommended again
    commit_timeout_ms: int = 5_000  # longest wait for the journal's disk
    drain_ms: int = 1_000  # after SIGTERM: not ready, still answering, until load balancers have looked away

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_in_flight", "max_history_events", "commit_timeout_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted at least 1")
        if self.drain_ms < 0:
            raise ValueError(f"drain_ms={self.drain_ms}: wanted at least 0")
