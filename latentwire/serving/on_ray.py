"""Shards of an index, encoded by the workers of a Ray cluster: Ray Data, with a pool of actors.

A row of the data set is a whole shard, so that a shard's texts are batched as they are in one process and its messages
are the same. Shards come back in whatever order they are done and are written by the process that asked for them: only
the sender's checkpoint has to be within the workers' reach.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow
import ray
import ray.data

from latentwire.core.errors import ConfigError, LatentWireError, ModelError, one_line
from latentwire.data.documents import Document
from latentwire.serving.build_index import Mapper, Shard

SCHEMA = pyarrow.schema(
    {
        "number": pyarrow.int64(),
        "id": pyarrow.list_(pyarrow.string()),
        "text": pyarrow.list_(pyarrow.string()),
        "wire": pyarrow.list_(pyarrow.large_binary()),
        "error": pyarrow.string(),
    }
)


def ray_engine(workers: int | None = None, device: str = "auto") -> Mapper:
    """An engine for `build_index`: so many workers, by default one for each GPU of the cluster, else for each CPU.

    The cluster is the one that Ray finds (`RAY_ADDRESS`), else one on this machine for as long as it takes.
    device: `system.device` of the sender. ConfigError where the cluster cannot be reached or is too small.
    """

    def engine(encode: Callable[[Shard], Shard], shards: Iterable[Shard]) -> Iterator[Shard]:
        waiting: list[ray.ObjectRef] = []
        with ExitStack() as stack:
            for shard in shards:
                if None not in shard.messages:
                    yield shard
                    continue
                if not waiting:
                    stack.enter_context(_cluster())
                    kind, count = _room(workers, device)  # before the rest is read, which may take long
                waiting.append(ray.put(_to_table([_to_row(shard)])))  # Ray spills to disk what memory does not hold
            if not waiting:
                return
            ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            made = ray.data.from_arrow_refs(waiting).map_batches(
                Worker,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(count, len(waiting))),
                fn_constructor_args=(encode,),
                **{kind: 1},
            )
            for row in made.iter_rows():
                if row["error"]:
                    raise ModelError(row["error"])
                yield _to_shard(row)

    return engine


class Worker:
    """An actor, which loads the sender once. What a user is to blame for comes back in a row, as one line."""

    def __init__(self, encode: Callable[[Shard], Shard]):
        self.encode = encode

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        rows = []
        for row in table.to_pylist():
            try:
                rows.append(_to_row(self.encode(_to_shard(row))))
            except LatentWireError as error:
                rows.append(row | {"error": str(error)})
        return _to_table(rows)


@contextmanager
def _cluster() -> Iterator[None]:
    """Within it, Ray runs; one that ran before is used and left running."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--engine ray: no cluster can be had: {one_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _room(workers: int | None, device: str) -> tuple[str, int]:
    """What a worker takes of the cluster, and how many there will be."""
    there = ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    kind, room = ("num_gpus", gpus) if gpus and device != "cpu" else ("num_cpus", cpus)
    if room < (workers or 1):
        raise ConfigError(f"--workers: {workers or 1} asked for, and the Ray cluster has room for {room}")
    return kind, workers or room


def _to_row(shard: Shard) -> dict[str, Any]:
    ids, texts = [document.id for document in shard.documents], [document.text for document in shard.documents]
    return {"number": shard.number, "id": ids, "text": texts, "wire": list(shard.messages), "error": None}


def _to_shard(row: dict[str, Any]) -> Shard:
    documents = [Document(name, text) for name, text in zip(row["id"], row["text"], strict=True)]
    return Shard(row["number"], documents, list(row["wire"]))


def _to_table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(rows, schema=SCHEMA)
