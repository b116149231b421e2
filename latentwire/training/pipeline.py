"""A whole run: the stages in order, each skipped when it is done and resumed when it was cut off.

Several processes may share a run, on a disk that all of them see; its configuration is then that of one process with
the accumulation of all of them, which could go on with it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch.nn import Module

from latentwire.checkpoint.parts import CODEBOOKS, State, adapter_stem, codebooks_in
from latentwire.checkpoint.system import save_checkpoint
from latentwire.checkpoint.tensors import INDEX, load_folder, save_folder
from latentwire.checkpoint.training_state import prune_states
from latentwire.config import Config
from latentwire.config.sections.training import STAGES, TuningStage
from latentwire.core.errors import ConfigError
from latentwire.core.paths import cache_dir
from latentwire.core.seeds import seed_everything
from latentwire.data import load_passages, load_texts
from latentwire.diagnostics.memory import peak_memory_mb, reset_peak
from latentwire.diagnostics.progress import StepLog
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import LATENT, LLMLINGUA, TEXT, TOKEN_BUDGET, Receiver
from latentwire.model.sender import default_codec
from latentwire.model.system import LatentWire, check_devices
from latentwire.reader.slots import SlotReader
from latentwire.rivals import versions_of
from latentwire.training.folder import RunFolder, own_folder
from latentwire.training.loop import Callback, Trainer
from latentwire.training.material import Material
from latentwire.training.module import TrainModule
from latentwire.training.origin import Origin
from latentwire.training.processes import Processes
from latentwire.training.stages import closed_form, codec
from latentwire.training.stages.codec import CodecTuning
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.fixed_encoder import fit_generators
from latentwire.training.stages.importance import largest, rank_heads
from latentwire.training.stages.salience import fit_salience
from latentwire.training.stages.scratch import standardise
from latentwire.training.stages.slot_tuning import (
    SlotTuning,
    cached_folder,
    epoch_steps,
    load_tuned,
    save_tuned,
    tuning_key,
    tuning_name,
)
from latentwire.wire.codecs import LearnedCodec

MEASURES = {"r2": "R²", "auc": "area under the ROC curve"}
STATISTICS_PASSAGES = 200
"""Passages behind means and variances: thousands of windows, while a covariance takes hundreds of thousands."""


class SinglePart(NamedTuple):
    """A part of the system, with the state of a system that has no other."""

    name: str
    module: Module

    def state_dict(self) -> State:
        return {self.name: self.module.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.module.load_state_dict(state[self.name])


class Run:
    """One run in one folder. `stages` names the stages that may be worked on now; finished ones are loaded.

    named: whether the folder is what the user asked for, and not only what the configuration's file suggests.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        stages: Sequence[str] = STAGES,
        command: Sequence[str] = (),
        fresh: bool = False,
        evaluates: bool = False,
        named: bool = True,
    ):
        self.processes = Processes.of(config)
        self.config = self.processes.widen(config)
        with self.processes.one_speaks():
            folder = folder if named else own_folder(folder, self.config)
        self.folder = RunFolder(folder, self.config, self.processes)
        self.stages = stages
        self.command = list(command)
        self.fresh = fresh
        self.evaluates = evaluates
        self.origin: Origin | None = None
        self.cache = Path(config.checkpoint.tuned_cache) if config.checkpoint.tuned_cache else cache_dir()

    def execute(self) -> LatentWire:
        """Run every stage; returns the trained system. Nothing is written before all that can be checked is checked."""
        try:
            with self.processes.one_speaks():
                return self._execute()
        finally:
            self.folder.close()

    def _execute(self) -> LatentWire:
        check_devices(self.config)
        if not self.fresh:
            self.folder.check()
        versions_of(self.config.evaluation.rivals)
        self.origin = Origin.of(self.config)
        if self.origin and self.fresh and self.origin.folder.resolve().is_relative_to(self.folder.path.resolve()):
            raise ConfigError(f"checkpoint.init_from: --fresh would remove {self.origin.folder}")
        self._check_codec()
        passages = load_passages(self.config.data, "train", self.config.data.samples)
        if self.evaluates:  # what cannot be loaded should be known before hours of training
            load_passages(self.config.data, "validation", self.config.evaluation.samples)
        texts = load_texts(self.config.data.text_path) if self.config.data.text_path else []
        seed_everything(self.config.system.seed)
        profiled = self.config.diagnostics.profile_memory
        if profiled:
            reset_peak()
        self.system = LatentWire.build(self.config, self.config.curriculum.train_only)
        loaded = {"stage": "load", "memory_mb": peak_memory_mb()}
        if self.origin:
            self.origin.take_up(self.system)
        self.material = Material(self.system, self.config, passages, texts)
        by_salience = self.config.encoder.keep_by == "salience"
        learns_salience = by_salience and (self.origin is None or self.origin.lacks_salience)
        if learns_salience:
            self.material.check_salience()
        self.processes.by_main(partial(self.folder.start, self.command, self.origin, self.fresh))
        if profiled:
            self.folder.record(loaded)
        if learns_salience:
            self.processes.main_first(self._salience)
        self.material.choose_ahead()
        fixed = self.origin.known - self.origin.shown_anew if self.origin else set()
        new = {name: receiver for name, receiver in self.system.receivers.items() if name not in fixed}
        self.processes.main_first(partial(self._rank_heads, new))
        lora = self.config.features.use_lora
        baselines = {name: list(self._baselines(r)) for name, r in self.system.receivers.items()} if lora else {}
        if lora and self.config.losses.distils:  # the teachers
            for receiver in self.system.receivers.values():
                self._tune(receiver, TEXT)
        if lora:
            for receiver in new.values():
                self._tune(receiver, LATENT)
                receiver.add_adapter(LATENT)  # also where slot tuning is left out
        if new or (self.origin and self.origin.lacks_companion):
            self.processes.main_first(partial(self._closed_form, new))
        trained = self._end_to_end()
        if trained:
            self._codec()
            self.save(self.last)
        for name, own in baselines.items():
            for reads in own:
                self._tune(self.system.receivers[name], reads)
        if trained and lora:  # again, now with the baselines' adapters
            self.save(self.last)
        return self.system

    def _check_codec(self) -> None:
        """ConfigError where the codec to evaluate with is a learned one that there will be no codebook of."""
        codec, own = default_codec(self.config), self.config.codec
        if self.origin and self.config.curriculum.train_only:  # its codebooks stay, and there are no others
            for kind in own.learned:
                if kind not in self.origin.codebooks:
                    raise ConfigError(f"codec.learned: {self.origin.folder} has no codebook of {kind!r}")
            there = self.origin.codebooks
        else:
            made = "codec" in self.stages or (not self.fresh and self.folder.is_done("codebooks"))
            there = set(own.learned) if made else set()
        if not self.evaluates or not isinstance(codec, LearnedCodec):
            return
        if codec.name not in there:
            raise ConfigError(f"evaluation.codec: {codec.name!r} needs a codebook, and there will be none here")
        if codec.layers > own.layers:
            raise ConfigError(f"evaluation.codec: {codec} has more layers than codec.layers = {own.layers}")

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the system as it is, with the origin's own files of what has not changed since, and of
        what was not trained."""
        if not self.processes.is_main:
            return
        before = self.origin.folder if self.origin else None
        beside = before if self.config.curriculum.train_only else None
        save_checkpoint(folder, self.system, self.command, beside, before)

    @property
    def last(self) -> Path:
        """The checkpoint at the end of the run."""
        return self.folder.path / "last"

    # ---- stages ---------------------------------------------------------------------------------------------------

    def _tune(self, receiver: Receiver, reads: str) -> None:
        kind, stage = self._tuning_stage(reads)
        texts = self.material.of(receiver)
        if not self._steps(epoch_steps(texts, self.config), stage):
            return
        key = self._tuning_key(receiver, texts, reads)
        kept = cached_folder(self.cache, key)
        if self.processes.agreed((kept / INDEX).is_file()):  # another run may finish it while the processes look
            print(f"{kind} of {receiver.name}, {reads}: taken from {kept}", flush=True)
            load_tuned(kept, receiver, reads)
        elif kind in self.stages or self.folder.is_done(tuning_name(receiver, reads)):
            # Only now, so that no adapter is there that was never trained.
            self._fit(SlotTuning(receiver, texts, self.config, reads), stage)
            if self.processes.is_main:
                save_tuned(kept, receiver, reads, key)
        elif reads == LATENT:
            self._refuse_to_go_on(kind, f" of {receiver.name!r}")
        elif reads == TEXT and self.config.losses.distils and {"slot_tuning", "end_to_end"} & set(self.stages):
            raise ConfigError(
                f"--stages: distillation needs the text-tuned {receiver.name!r}: do {kind} first or as well"
            )

    def _baselines(self, receiver: Receiver) -> Iterator[str]:
        """What a receiver is tuned to read in the end, to be compared with.

        A rival's LoRA that the run has stays, also one from the cache; so this looks before last/ is written anew.
        """
        if not self.config.losses.distils:  # else it was the teacher
            yield TEXT
        yield TOKEN_BUDGET
        kept = (self.last / f"{adapter_stem(receiver.name, LLMLINGUA)}.safetensors").is_file()
        kept = kept or self.folder.is_done(tuning_name(receiver, LLMLINGUA))
        if kept or LLMLINGUA in self.config.evaluation.rivals:
            yield LLMLINGUA

    def _tuning_stage(self, reads: str) -> tuple[str, TuningStage]:
        curriculum = self.config.curriculum
        return ("slot_tuning", curriculum.slot_tuning) if reads == LATENT else ("baselines", curriculum.baselines)

    def _tuning_key(self, receiver: Receiver, texts: Sequence[ReceiverText], reads: str) -> dict[str, Any]:
        stage = self._tuning_stage(reads)[1]
        steps = self._steps(epoch_steps(texts, self.config), stage)
        origin = self.origin.files if self.origin and receiver.name in self.origin.known else None
        key = tuning_key(receiver, self.config, reads, self.material.fingerprint, steps) | {"origin": origin}
        if stage.lr_scale != 1.0:
            key["lr_scale"] = stage.lr_scale
        encoder = self.system.sender.encoder
        if reads == LATENT and isinstance(encoder, BackboneEncoder) and encoder.salience is not None:
            key["salience"] = encoder.salience.digest
        if reads == LATENT and isinstance(receiver.reader, SlotReader) and receiver.reader.ranked:
            key["phases_of"] = receiver.reader.phases_of.tolist()
        if reads == LATENT and self.config.losses.distils:
            key["teacher"] = self._tuning_key(receiver, texts, TEXT)
        return key

    def _closed_form(self, new: dict[str, Receiver]) -> None:
        """Encoder and generators, or only what a checkpoint lacks: a companion's part, generators of new receivers.

        Where receivers show other tokens than they did, a companion's part is first fitted again, to these receivers.
        """
        if self.origin is None and self.config.encoder.type != "backbone":
            self._start_readers()
            return
        stage, system = self.config.curriculum.closed_form, self.system
        asked = [texts for _, texts in self.material.prepared[stage.held_out :][: stage.importance_passages]]
        weighed: dict[str, Any] = {"band": stage.band, "asked": asked, "importance_floor": stage.importance_floor}
        if self.origin is None:
            self._solve_stage("closed_form", partial(closed_form.fit, system, **weighed))
        fit_companion = partial(closed_form.fit_companion, system, **weighed)
        if self.config.encoder.companion and (self.origin is None or self.origin.lacks_companion):
            known = {name: r for name, r in system.receivers.items() if self.origin is None or name not in new}
            meant = {name: r for name, r in known.items() if name in (stage.companion_for or known)}
            self._solve_stage("closed_form/companion", partial(fit_companion, meant))
        elif self.config.encoder.companion and self.origin and not self.config.curriculum.train_only:
            anew = {name: new[name] for name in self.origin.shown_anew}
            if anew:
                closed_form.forget_companion(system, anew)
                self._solve_stage("closed_form/companion", partial(fit_companion, anew))
        if self.origin and new:
            self._solve_stage("closed_form", partial(fit_generators, system.sender, new))

    def _solve_stage(self, name: str, fit: Callable[..., dict[str, float]]) -> None:
        """A fit of the stage closed_form, where that may be worked on or it was done before."""
        if "closed_form" in self.stages or self.folder.is_done(name):
            self._solve(name, fit, self.material.for_closed_form(), "r2")
        else:
            self._refuse_to_go_on("closed_form")

    def _salience(self) -> None:
        """By what tokens are chosen: nothing can be read before that is known, whichever stages are worked on."""
        encoder = self.system.sender.encoder
        assert isinstance(encoder, BackboneEncoder) and encoder.salience is not None
        salience = SinglePart("salience", encoder.salience)
        self._solve("salience", partial(fit_salience, encoder), self.material.for_salience(), "auc", salience)

    def _rank_heads(self, receivers: dict[str, Receiver]) -> None:
        """Which heads show which tokens, for those of these receivers where deep_prefix.ranked asks for it."""
        for name in (name for name in receivers if name in self.config.deep_prefix.ranked):
            stage, reader = f"heads/{name}", receivers[name].reader
            assert isinstance(reader, SlotReader)
            done = self.folder.done(stage)
            if self.folder.is_done(stage):
                reader.phases_of.copy_(load_folder(done)["heads"]["phases_of"])
                continue
            texts = self.material.of(receivers[name])[: self.config.curriculum.closed_form.importance_passages]
            top = largest(rank_heads(receivers[name], texts))
            self.folder.record({"stage": stage, "layer.head": top})
            print(f"{stage}: share of layer.head in what answers hang on: {top}", flush=True)
            save_folder(done, {"heads": {"phases_of": reader.phases_of}}, {"layer.head": top})

    def _solve(
        self,
        name: str,
        fit: Callable[..., dict[str, float]],
        passages: Iterable[Any],
        measure: str,
        part: SinglePart | None = None,
    ) -> None:
        """A fit in closed form on some passages, if it was not done before.

        measure: what it returns; part: all that it changes, where that is not most of the system.
        """
        fitted = part or self.system
        done = self.folder.done(name)
        if self.folder.is_done(name):
            print(f"{name}: done before", flush=True)
            fitted.load_state_dict(load_folder(done))
            return
        stage, started = self.config.curriculum.closed_form, time.perf_counter()
        self.folder.track(name)
        seen = 0

        def report(rows: int) -> None:
            nonlocal seen
            seen += rows
            if seen // 2000 != (seen - rows) // 2000:
                print(f"{name}: {seen} rows, {time.perf_counter() - started:.0f} s", flush=True)

        if self.config.diagnostics.profile_memory:
            reset_peak()
        sums = done.parent / "sums"
        scores = fit(passages=passages, held_out=stage.held_out, ridge=stage.ridge, report=report, state=sums)
        seconds = round(time.perf_counter() - started, 1)
        took = {"seconds": seconds, "memory_mb": peak_memory_mb()}
        self.folder.record({"stage": name, measure: scores} | took)
        print(f"{name}: held-out {MEASURES[measure]} {scores}, {seconds} s", flush=True)
        save_folder(done, fitted.state_dict(), {measure: scores})
        shutil.rmtree(sums, ignore_errors=True)

    def _start_readers(self) -> None:
        """What readers start from where an encoder has no closed form; a part of the end-to-end stage."""
        if "end_to_end" not in self.stages or self.folder.is_done(EndToEnd.name):
            return
        done = self.folder.done("reader_start")
        if self.folder.is_done("reader_start"):
            self.system.load_state_dict(load_folder(done))
            return
        kind = self.config.encoder.type
        print(
            f"closed_form: left out, as it solves encoder.type = 'backbone' and not {kind!r}; readers start from the "
            "statistics of what they have to make",
            flush=True,
        )
        standardise(self.system, islice(self.material.for_closed_form(), STATISTICS_PASSAGES))
        save_folder(done, self.system.state_dict(), {})

    def _end_to_end(self) -> bool:
        """Whether the system is trained to the end now (which may mean no step at all, if so configured)."""
        if "end_to_end" not in self.stages and not self.folder.is_done(EndToEnd.name):
            self._refuse_to_go_on(EndToEnd.name)
            return False
        module = EndToEnd(self.system, self.material.prepared, self.config)
        stage = self.config.curriculum.end_to_end
        self._fit(module, stage, [EpochCheckpoints(self, stage.epochs)])
        return True

    def _codec(self) -> None:
        asked = "codec" in self.stages
        if not self.config.codec.learned or not (asked or self.folder.is_done("codebooks")):
            return
        own = not self.config.curriculum.train_only  # else the codebooks came with the sender
        if own:
            self.processes.main_first(self._codebooks)
        if asked or self.folder.is_done(CodecTuning.name):
            self._fit(CodecTuning(self.system, self.material.prepared, self.config), self.config.curriculum.codec)
        if own and self.folder.is_done(CodecTuning.name):
            self.processes.main_first(self._recount)

    def _codebooks(self) -> None:
        started = time.perf_counter()

        def report(number: int) -> None:
            if number and number % 200 == 0:
                print(f"codebooks: {number} passages, {time.perf_counter() - started:.0f} s", flush=True)

        self._keep_codebooks("codebooks", partial(codec.fit, report=report))

    def _recount(self) -> None:
        self._keep_codebooks("frequencies", codec.recount)

    def _keep_codebooks(self, stage: str, find: Callable[..., dict[str, dict[str, float]]]) -> None:
        """Codebooks as `find` leaves them, or left them before."""
        found = self.folder.done(stage)
        if self.folder.is_done(stage):
            self.system.sender.codebooks |= codebooks_in(load_folder(found))
            return
        started = time.perf_counter()
        scores = find(self.system, self.material.prepared, self.config)
        self.folder.record({"stage": stage, **scores, "seconds": round(time.perf_counter() - started, 1)})
        for name, bits in scores["bits_per_latent"].items():
            kept = f" keep {scores['kept'][name]:.3f} of the variance" if "kept" in scores else ""
            print(f"{stage} of {name}: {bits:.1f} bits a latent{kept}", flush=True)
        state = {stem: t for stem, t in self.system.state_dict().items() if stem.startswith(CODEBOOKS)}
        save_folder(found, state, scores)

    def _refuse_to_go_on(self, missing: str, of: str = "") -> None:
        """ConfigError where a later stage is asked for while this one was neither done before nor asked for."""
        later = [s for s in STAGES[STAGES.index(missing) + 1 : STAGES.index("baselines")] if s in self.stages]
        if later:
            raise ConfigError(f"--stages: {later[0]} needs {missing}{of}, which was not done in {self.folder.path}")

    def _steps(self, steps_per_epoch: int, stage: TuningStage) -> int:
        full = -(-stage.epochs * steps_per_epoch // self.config.optimizer.accumulation)  # to the end of the last epoch
        return full if stage.max_steps is None else min(full, stage.max_steps)

    def _fit(self, module: TrainModule, stage: TuningStage, callbacks: Sequence[Callback] = ()) -> None:
        """Train to the end of a stage, and leave it done for all processes."""
        total = self._steps(module.steps_per_epoch, stage)
        if self.folder.is_done(module.name):
            print(f"{module.name}: done before", flush=True)
            module.load_state_dict(load_folder(self.folder.done(module.name)))
            return
        if not total:
            return
        hint, folder = "The same command goes on from there.", self.folder.stage(module.name)
        trainer = Trainer(
            module, self.config, folder, total, lr_scale=stage.lr_scale, callbacks=callbacks, resume_hint=hint
        )
        trainer.restore()
        if trainer.step:
            print(f"{module.name}: goes on from step {trainer.step}", flush=True)
        if self.processes.is_main:
            log = StepLog(self.folder.record, self.config.diagnostics.log_every, total, trainer.step, module.name)
            trainer.callbacks.append(log)
        self.folder.track(module.name)
        trainer.fit()
        if trainer.memory.enabled:
            self.folder.record({"stage": module.name, "memory_mb": trainer.memory.highest})
        self.processes.by_main(partial(self._finish, trainer))

    def _finish(self, trainer: Trainer) -> None:
        trained = {group.name: sum(p.numel() for p in group.parameters) for group in trainer.groups}
        info = {"step": trainer.step, "parameters": trained}
        save_folder(self.folder.done(trainer.module.name), trainer.module.state_dict(), info)
        prune_states(trainer.folder, keep=0)


class EpochCheckpoints(Callback):
    """A checkpoint for evaluation after every epoch; a last step may go a little beyond the last one."""

    def __init__(self, run: Run, epochs: int):
        self.run = run
        self.epochs = epochs

    def on_epoch(self, epoch: int) -> None:
        if epoch <= self.epochs:
            self.run.save(self.run.folder.path / f"epoch{epoch}")
