"""Several processes that train one system together, as `accelerate launch` starts them.

Every process holds all models, takes its share of the micro-batches of each step, and adds its gradients to those of
the others before the step: data parallelism. So a run takes the same steps however many processes share them. All but
gradient steps is done by the main process, which alone writes files.

Gradients are added up here and not by DistributedDataParallel: receivers take turns, so that most parameters have no
gradient after a given backward pass, and the optimizer must leave alone those that have none in any process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import distributed
from torch.nn import Parameter

from latentwire.backbone.devices import resolve_device
from latentwire.config import Config
from latentwire.core.errors import ConfigError, LatentWireError

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long the others wait for the main process. Where one has died, the launcher ends those of its machine at once."""
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What Accelerate may be asked for that splits the models themselves."""


class Processes:
    """The processes of this run; without a launcher, the one that there is.

    cpu: whether they compute on the CPU, though there may be GPUs. ConfigError where the launcher was asked for more
    than data parallelism: processes have different receivers read at the same time, so that none could wait for
    another's part of a model.
    """

    def __init__(self, cpu: bool = False):
        for name in SHARDED:
            if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
                raise ConfigError(
                    f"accelerate launch: {name} splits models over processes that read different receivers at the same "
                    "time; use configs/accelerate/ddp.yaml, with model.load_4bit or system.sequential_models for "
                    "receivers that do not fit"
                )
        self.state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=PATIENCE)
        self.count: int = self.state.num_processes
        self.is_main: bool = self.state.is_main_process

    @classmethod
    def of(cls, config: Config) -> Processes:
        """Those of a run with this configuration; ConfigError where they would get in each other's way."""
        device, spread = config.system.device, config.system.device_map
        own = cls(cpu=not device.startswith(("auto", "cuda")))
        if own.count > 1 and device.startswith("cuda:"):
            raise ConfigError(f"system.device: {device!r} is one device for {own.count} processes; use 'auto'")
        if own.count > 1 and spread is not None:
            raise ConfigError(f"system.device_map: a model that is spread out leaves no room for {own.count} processes")
        if own.count > 1 and config.adapter.color != "none" and not config.features.use_deep_prefix:
            raise ConfigError(
                f"adapter.color: {config.adapter.color!r} follows the statistics of one process's batches, and there "
                f"are {own.count} processes; say 'none'"
            )
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
        found = resolve_device(device) if own.count > 1 else "cpu"
        if not found.startswith("cpu" if on_cpu else ("cpu", "cuda")):
            asked = "accelerate launch was asked for the CPU" if on_cpu else "several processes need CUDA or the CPU"
            raise ConfigError(f"system.device: {device!r} is {found!r} here, and {asked}; say 'cpu'")
        return own

    def widen(self, config: Config) -> Config:
        """The configuration of all processes together: accumulation counts the micro-batches of all of them."""
        many = {"accumulation": config.optimizer.accumulation * self.count}
        return config.model_copy(update={"optimizer": config.optimizer.model_copy(update=many)})

    def share(self, count: int) -> range:
        """Which of the micro-batches of a step are this process's: neighbours, which show receivers the same texts."""
        index = self.state.process_index
        return range(count * index // self.count, count * (index + 1) // self.count)

    # ---- together -------------------------------------------------------------------------------------------------

    def gathered(self, items: list[T]) -> list[T]:
        """The items of all processes, one process's behind the other's."""
        return gather_object(items) if self.count > 1 else items

    def agreed(self, value: T) -> T:
        """The main process's value."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def start_alike(self, parameters: Sequence[Parameter]) -> None:
        """Give all processes the main one's values: on GPUs, not even the same computation need agree to the bit."""
        if self.count > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.data, 0)

    def add_up(self, parameters: Sequence[Parameter]) -> None:
        """Give all processes the sum of their gradients; a parameter without one in any of them stays without."""
        if self.count == 1 or not parameters:
            return
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=self.state.device)
        distributed.all_reduce(used)
        chosen = [p for p, number in zip(parameters, used.tolist(), strict=True) if number]
        if not chosen:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen])
        distributed.all_reduce(flat)
        for p, grad in zip(chosen, flat.split([p.numel() for p in chosen]), strict=True):
            p.grad = grad.view_as(p)

    # ---- one for all ----------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.state.wait_for_everyone()

    def by_main(self, work: Callable[[], object]) -> None:
        """The main process does this and the others wait for it, however long; where it fails, all fail alike."""
        failure: LatentWireError | None = None
        if self.is_main:
            try:
                work()
            except LatentWireError as error:
                failure = error
        failure = self.agreed(failure)
        if failure is not None:
            raise failure

    def main_first(self, work: Callable[[], object]) -> None:
        """The main process does this, and then the others, which find it done."""
        self.by_main(work)
        if not self.is_main:
            work()

    @contextmanager
    def one_speaks(self) -> Iterator[None]:
        """Only the main process writes to standard output."""
        if self.is_main:
            yield
            return
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
