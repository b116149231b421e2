"""Training to the end of a stage, once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from latentwire.checkpoint.tensors import load_folder, save_folder
from latentwire.checkpoint.training_state import prune_states
from latentwire.config.sections.training import TuningStage
from latentwire.diagnostics.progress import StepLog
from latentwire.training.folder import RunFolder
from latentwire.training.loop import Callback, Trainer
from latentwire.training.module import TrainModule
from latentwire.training.work import Work


def fit(work: Work, module: TrainModule, stage: TuningStage, callbacks: Sequence[Callback] = ()) -> None:
    """Train to the end of a stage, and leave it done for all processes."""
    total = work.steps(module.batches_per_epoch, stage)
    if work.processes.agreed(work.folder.is_done(module.name)):  # the main one may write it while the others look
        print(f"{module.name}: done before", flush=True)
        module.load_state_dict(load_folder(work.folder.done(module.name)))
        return
    if not total:
        work.processes.by_main(partial(_leave_done, work.folder, module, {"step": 0}))
        return
    folder = work.folder.stage(module.name)
    trainer = Trainer(module, work.config, folder, total, lr_scale=stage.lr_scale, callbacks=callbacks)
    trainer.restore()
    if trainer.step:
        print(f"{module.name}: goes on from step {trainer.step}", flush=True)
    if work.processes.is_main:
        log = StepLog(work.folder.record, work.config.diagnostics.log_every, total, trainer.step, module.name)
        trainer.callbacks.append(log)
    work.folder.track(module.name)
    trainer.fit()
    if trainer.memory.enabled:
        work.folder.record({"stage": module.name, "memory_mb": trainer.memory.highest})
    work.processes.by_main(partial(_finish, work.folder, trainer))


def _finish(folder: RunFolder, trainer: Trainer) -> None:
    trained = {group.name: sum(p.numel() for p in group.parameters) for group in trainer.groups}
    _leave_done(folder, trainer.module, {"step": trainer.step, "parameters": trained})
    prune_states(trainer.folder, keep=0)


def _leave_done(folder: RunFolder, module: TrainModule, info: dict[str, Any]) -> None:
    save_folder(folder.done(module.name), module.state_dict(), info)
