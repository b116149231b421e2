"""The training loop: knows a train module and callbacks, and nothing of what is trained.

A step is reproducible from its number: batches, draws and the torch seed are functions of it. A resumable checkpoint
therefore holds weights, optimizer moments and the step, and no generator states; and several processes can share the
micro-batches of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from latentwire.checkpoint.training_state import TrainingState, latest_state, load_state, prune_states, save_state
from latentwire.config.schema import Config
from latentwire.core.errors import Interrupted, TrainingError
from latentwire.diagnostics.memory import MemoryProfile
from latentwire.diagnostics.progress import LOSS_GRAD_NORM
from latentwire.diagnostics.tensors import TensorWatch
from latentwire.training.interrupt import StopRequest
from latentwire.training.module import TrainModule
from latentwire.training.processes import Processes
from latentwire.training.schedule import lr_factor

StepRecord = dict[str, Any]


class Callback(Protocol):
    """Hooks into the loop; a subclass may leave any of them out."""

    def on_step(self, record: StepRecord) -> None:
        """After every step, with what would be logged."""
        return

    def on_epoch(self, epoch: int) -> None:
        """After every pass over the data, counted from 1."""
        return

    def on_end(self) -> None:
        """When training ends, in whatever way."""
        return


class Seen(NamedTuple):
    """What is logged of a micro-batch; the loss in nats per answer token, and how much it counts in the step's."""

    receiver: str
    loss: float
    weight: float
    tokens: int
    metrics: dict[str, float]


class Trainer:
    """Runs a module for `total_steps`, with checkpoints under `folder`.

    Several processes have one each; `optimizer.accumulation` counts the micro-batches of all of them.
    """

    def __init__(
        self,
        module: TrainModule,
        config: Config,
        folder: Path,
        total_steps: int,
        *,
        lr_scale: float = 1.0,
        callbacks: Sequence[Callback] = (),
    ):
        self.module = module
        self.config = config
        self.folder = folder
        self.total_steps = total_steps
        self.callbacks = list(callbacks)
        self.step = 0
        self.bad_steps = 0
        self.accumulation = config.optimizer.accumulation
        module.total_batches = total_steps * self.accumulation
        self.memory = MemoryProfile(config.diagnostics.profile_memory)
        self.watch = TensorWatch(module.name, config.diagnostics.log_shapes)
        self.norms_due: dict[str, int] = {}
        self.processes = Processes()
        self.groups = [g for g in module.parameter_groups() if g.parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": g.parameters, "lr": g.lr * lr_scale, "peak": g.lr * lr_scale} for g in self.groups],
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        self.optimizer.zero_grad(set_to_none=True)  # an earlier stage may have left gradients behind

    # ---- one step -------------------------------------------------------------------------------------------------

    def take_step(self) -> StepRecord:
        """Accumulate, clip, step; a step with a NaN or inf loss or gradient changes nothing and says so."""
        started = time.perf_counter()
        self._set_lr()
        record = self._record(self.processes.gathered(self._accumulate()))
        wrong = "" if math.isfinite(record["loss"]) else "loss"
        if not wrong:
            record |= self._clip()
            wrong = "" if math.isfinite(record["grad_norm"]) else "gradient"
        if wrong:
            self.bad_steps += 1
            record |= {"skipped": True, "not_finite": wrong}
        else:
            with self.memory.phase("optimizer"):
                self.optimizer.step()
            self.bad_steps = 0
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        seconds = time.perf_counter() - started
        record |= self.memory.step()
        return record | {"tokens_per_s": round(record.pop("tokens") / seconds, 1), "seconds": round(seconds, 4)}

    def _accumulate(self) -> list[Seen]:
        """Add up the gradients of this process's micro-batches, up to one whose loss is NaN or inf."""
        seen: list[Seen] = []
        indices = [self.step * self.accumulation + part for part in self.processes.share(self.accumulation)]
        batches = [self.module.batch(index) for index in indices]
        for index, batch, weight in zip(indices, batches, self._weights(batches), strict=True):
            torch.manual_seed(self.config.system.seed * 1_000_003 + index)
            with self.memory.phase("forward"), self.watch.watching():
                output = self.module.forward(batch)
            output.metrics |= self.watch.rms
            seen.append(Seen(output.receiver, output.loss.item(), weight, output.tokens, output.metrics))
            if not math.isfinite(seen[-1].loss):
                break
            if self._norms_due(output.receiver):
                output.metrics |= self._loss_grad_norms(output.terms)
            with self.memory.phase("backward"):
                (output.loss * (weight / self.accumulation)).backward()
        return seen

    def _clip(self) -> dict[str, float]:
        """Add up the gradients of all processes and clip them; returns their norms before that, whole and by group."""
        for g in self.groups:
            self.processes.add_up(g.parameters)
        norms = {f"grad_norm/{g.name}": _total_norm(_gradients(g.parameters)) for g in self.groups}
        every = [p for g in self.groups for p in g.parameters]
        norm = float(torch.nn.utils.clip_grad_norm_(every, self.config.optimizer.grad_clip))
        return {"grad_norm": norm} | norms

    def _weights(self, batches: Sequence[Any]) -> list[float]:
        """How much each micro-batch counts, 1 in the mean: among those of its receiver in this step by its answer
        tokens, as if they were one batch. Batches hold texts of one length, and so differ in tokens many times over."""
        sizes = [self.module.size(batch) for batch in batches]
        tokens: dict[str, list[int]] = {}
        for receiver, count in self.processes.gathered(sizes):
            tokens.setdefault(receiver, []).append(count)
        return [count * len(tokens[name]) / max(1, sum(tokens[name])) for name, count in sizes]

    def _record(self, outputs: list[Seen]) -> StepRecord:
        bad = [o.receiver for o in outputs if not math.isfinite(o.loss)]
        names = bad or [o.receiver for o in outputs]
        record: StepRecord = {
            "stage": self.module.name,
            "step": self.step + 1,
            "receiver": "+".join(dict.fromkeys(names)),
            "loss": _mean([(o.loss, o.weight) for o in outputs]),
        }
        for key in sorted({key for o in outputs for key in o.metrics}):
            record[key] = _mean([(o.metrics[key], o.weight) for o in outputs if key in o.metrics])
        lrs = {f"lr/{g.name}": p["lr"] for g, p in zip(self.groups, self.optimizer.param_groups, strict=True)}
        return record | lrs | {"tokens": sum(o.tokens for o in outputs)}

    def _norms_due(self, receiver: str) -> bool:
        every = self.config.diagnostics.grad_norms_every
        if not every or self.step < self.norms_due.get(receiver, 0):
            return False
        self.norms_due[receiver] = self.step + every
        return True

    def _loss_grad_norms(self, terms: dict[str, torch.Tensor]) -> dict[str, float]:
        """The norm of each loss term's own gradient, before they add up and are clipped."""
        parameters = [p for g in self.groups for p in g.parameters if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            norms[f"{LOSS_GRAD_NORM}/{name}"] = _total_norm([g for g in grads if g is not None])
        return norms

    def _set_lr(self) -> None:
        factor = lr_factor(self.config.optimizer, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    # ---- the whole run --------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end, from the latest checkpoint under the folder if there is one."""
        if not self.step:
            self.restore()
        for group in self.groups:
            self.processes.start_alike(group.parameters)
        with StopRequest() as stop:
            try:
                while self.step < self.total_steps:
                    self._one_step()
                    if any(self.processes.gathered([stop.requested])):
                        self.save()
                        where = f"stopped at step {self.step} and saved to {self.folder}"
                        raise Interrupted(f"{where}. The same command goes on from there.")
            finally:
                for callback in self.callbacks:
                    callback.on_end()

    def _one_step(self) -> None:
        record = self.take_step()
        for callback in self.callbacks:
            callback.on_step(record)
        if self.bad_steps >= self.config.optimizer.max_bad_steps:
            raise TrainingError(
                f"{self.module.name}: {self.bad_steps} steps in a row were skipped, the last one, step {self.step}, as "
                f"the {record['not_finite']} of receiver {record['receiver']!r} was NaN or inf; {self._last_good()}. A "
                "lower optimizer.lr may help"
            )
        before, passes = (n * self.accumulation // self.module.batches_per_epoch for n in (self.step - 1, self.step))
        for passed in range(before + 1, passes + 1):
            for callback in self.callbacks:
                callback.on_epoch(passed)
        if self.step % self.config.checkpoint.every_steps == 0 and self.bad_steps == 0:
            self.save()

    def _last_good(self) -> str:
        found = latest_state(self.folder)
        return f"the last good checkpoint is {found}" if found else "no checkpoint was written yet"

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a resumable checkpoint and forget the oldest ones."""
        if self.processes.is_main:
            save_state(self.folder, TrainingState(self.step, self.module.state_dict(), self._optimizer_tensors()))
            prune_states(self.folder, self.config.checkpoint.keep)
        self.processes.wait()  # or those that end after it would have the launcher end the one that still writes

    def restore(self) -> None:
        """Take up the latest checkpoint under the folder, if there is one."""
        found = latest_state(self.folder)
        if found is None:
            return
        state = load_state(found)
        self.module.load_state_dict(state.weights)
        self._load_optimizer(state.optimizer)
        self.step = state.step

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(f"{g.name}.{i}", p) for g in self.groups for i, p in enumerate(g.parameters)]

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": value
            for name, p in self._parameters()
            for key, value in self.optimizer.state.get(p, {}).items()
        }

    def _load_optimizer(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, p in self._parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if all(f"{name}.{key}" in tensors for key in keys):
                self.optimizer.state[p] = {key: tensors[f"{name}.{key}"].to(p.device) for key in keys}


def _gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _total_norm(grads: list[torch.Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0


def _mean(values: Sequence[tuple[float, float]]) -> float:
    """Mean of (value, weight) pairs; without weights where they are all nothing."""
    total = sum(weight for _, weight in values)
    return sum(v * w for v, w in values) / total if total else sum(v for v, _ in values) / len(values)
