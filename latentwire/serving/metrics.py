"""What a service counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """All measures of one service, in a registry of its own: one process may hold several services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "latentwire_requests",
            "Requests answered, refused ones included.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "latentwire_request_seconds",
            "Time from a request's head to the end of its answer; refused requests are not in it.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.accepted = Gauge(
            "latentwire_accepted_requests", "Requests accepted and not answered yet.", registry=self.registry
        )
        self.waiting = Gauge("latentwire_waiting_jobs", "Jobs whose batch is not begun.", registry=self.registry)
        self.batch_rows = Histogram(
            "latentwire_batch_rows",
            "Texts or questions done together.",
            ["task"],
            buckets=ROWS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "latentwire_batch_seconds", "Time of a batch.", ["task"], buckets=SECONDS, registry=self.registry
        )
        self.wire_bytes = Counter(
            "latentwire_wire_bytes", "Bytes of messages made and read.", ["task"], registry=self.registry
        )
        self.answers = Counter(
            "latentwire_answers", "Answers by what was read for them.", ["receiver", "source"], registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
