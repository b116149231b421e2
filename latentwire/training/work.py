"""What the stages of a run work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.config import Config
from latentwire.config.sections.training import STAGES, TuningStage
from latentwire.core.errors import ConfigError
from latentwire.model.pretrained import save_checkpoint, take_baselines
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.folder import RunFolder
from latentwire.training.material import Material
from latentwire.training.origin import Origin
from latentwire.training.processes import Processes


@dataclass(frozen=True)
class Work:
    """A run that has loaded everything.

    stages: those that may be worked on now; command: the words that started it; origin: the checkpoint that the system
    comes from, None where it is new; cache: where tuned adapters are kept for all runs.
    """

    config: Config
    folder: RunFolder
    processes: Processes
    stages: Sequence[str]
    command: Sequence[str]
    system: LatentWire
    material: Material
    origin: Origin | None
    cache: Path

    @property
    def lacks_salience(self) -> bool:
        """Whether it has yet to be learned by what tokens are chosen."""
        by_salience = self.config.encoder.keep_by == "salience"
        return by_salience and (self.origin is None or self.origin.lacks_salience)

    @property
    def new_receivers(self) -> dict[str, Receiver]:
        """Receivers that are fitted and tuned anew: those that the origin does not know, or shows other tokens."""
        fixed = self.origin.fixed if self.origin else set()
        return {name: receiver for name, receiver in self.system.receivers.items() if name not in fixed}

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the system as it is, with the origin's own files of what has not changed since, and of
        what was not trained."""
        if not self.processes.is_main:
            return
        before = self.origin.folder if self.origin else None
        save_checkpoint(folder, self.system, self.command, before)

    def complete_epochs(self) -> None:
        """Give the checkpoints of epochs what they are compared with, which is tuned only at the end."""
        for folder in self.folder.epochs if self.processes.is_main else ():
            take_baselines(folder, self.folder.last)

    def refuse_to_go_on(self, missing: str, of: str = "") -> None:
        """ConfigError where a later stage is asked for while this one was neither done before nor asked for."""
        later = [s for s in STAGES[STAGES.index(missing) + 1 : STAGES.index("baselines")] if s in self.stages]
        if later:
            raise ConfigError(f"--stages: {later[0]} needs {missing}{of}, which was not done in {self.folder.path}")

    def steps(self, batches_per_epoch: int, stage: TuningStage) -> int:
        batches = stage.epochs * batches_per_epoch
        full = -(-batches // self.config.optimizer.accumulation)  # to the end of the last epoch
        return full if stage.max_steps is None else min(full, stage.max_steps)
