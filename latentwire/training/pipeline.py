"""A whole run: the stages in order, each skipped when it is done and resumed when it was cut off.

runs/<name>/
    config.json  manifest.json  diagnostics.jsonl       and origin.json, what it started from
    stages/<stage>/step_000100/ ...      resumable states
    stages/<stage>/done/                 the finished stage
    epoch1/ epoch2/ ... last/            checkpoints for evaluation
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from latentwire.checkpoint.parts import CODECS, codebooks_in
from latentwire.checkpoint.system import save_checkpoint
from latentwire.checkpoint.tensors import INDEX, load_folder, save_folder
from latentwire.config import Config, config_from_dict
from latentwire.config.load import differences
from latentwire.config.sections.running import EvaluationConfig
from latentwire.config.sections.training import STAGES, TuningStage
from latentwire.core.atomic import append_jsonl, read_json, write_json
from latentwire.core.errors import ConfigError
from latentwire.core.manifest import run_manifest
from latentwire.core.paths import cache_dir
from latentwire.core.seeds import seed_everything
from latentwire.data import load_passages, load_texts
from latentwire.data.example import Passage
from latentwire.diagnostics.memory import peak_memory_mb, reset_peak
from latentwire.diagnostics.progress import StepLog
from latentwire.encoder.text import SenderText
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import LATENT, LLMLINGUA, TEXT, TOKEN_BUDGET, Receiver
from latentwire.model.sender import default_codec
from latentwire.model.system import LatentWire, check_devices
from latentwire.rivals import versions_of
from latentwire.training.loop import Callback, Trainer
from latentwire.training.module import TrainModule
from latentwire.training.origin import Origin
from latentwire.training.processes import Processes
from latentwire.training.stages import closed_form, codec
from latentwire.training.stages.codec import CodecTuning
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.fixed_encoder import fit_generators
from latentwire.training.stages.scratch import standardise
from latentwire.training.stages.slot_tuning import (
    SlotTuning,
    cached_folder,
    data_fingerprint,
    epoch_steps,
    load_tuned,
    save_tuned,
    tuning_key,
    tuning_name,
)
from latentwire.training.tracking import tracker_of
from latentwire.wire.codecs import LearnedCodec

MAY_CHANGE = {
    *(f"checkpoint.{key}" for key in ("runs_dir", "every_steps", "keep", "tuned_cache")),
    *(f"system.{key}" for key in ("threads", "require_cuda", "device_map", "sequential_models", "grad_ckpt")),
    *(f"evaluation.{key}" for key in EvaluationConfig.model_fields if key != "llmlingua_model"),  # a LoRA hangs on it
    "data.eval_path",
    "diagnostics",
}
"""Where a run writes and what it evaluates may change while it goes on."""
STATISTICS_PASSAGES = 200
"""Passages behind means and variances: thousands of windows, while a covariance takes hundreds of thousands."""
Prepared = tuple[SenderText, dict[str, ReceiverText]]


class Run:
    """One run in one folder. `stages` names the stages that may be worked on now; finished ones are loaded.

    Several processes may share a run, on a disk that all of them see; its configuration is then that of one process
    with the accumulation of all of them, which could go on with it.
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
    ):
        self.processes = Processes.of(config)
        self.config = self.processes.widen(config)
        self.folder = folder
        self.stages = stages
        self.command = list(command)
        self.fresh = fresh
        self.evaluates = evaluates
        self.origin: Origin | None = None
        self.tracker = tracker_of(config, folder) if self.processes.is_main else None
        self.cache = Path(config.checkpoint.tuned_cache) if config.checkpoint.tuned_cache else cache_dir()

    def start(self) -> None:
        """Write the configuration and manifest, or check that the folder belongs to this very configuration.

        With `fresh`, what an earlier run left in the folder is removed first.
        """
        path = self.folder / "config.json"
        if self.fresh and path.is_file() and (self.folder / "manifest.json").is_file():
            shutil.rmtree(self.folder)
        now = self.config.model_dump(mode="json")
        if path.is_file():
            # Through the schema, as options that came later had their defaults then.
            before = config_from_dict(read_json(path), str(path), {}).model_dump(mode="json")
            changed = sorted(differences(before, now, MAY_CHANGE))
            if changed:
                raise ConfigError(
                    f"{path}: this run was started with another value of {changed[0]}"
                    f"{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}; choose another --tag, or --fresh"
                )
        if self.origin:
            self.origin.remember(self.folder)
        if not path.is_file():
            write_json(path, now)
        made_by = run_manifest(now, self.command) | {"processes": self.processes.count}
        write_json(self.folder / "manifest.json", made_by)

    def execute(self) -> LatentWire:
        """Run every stage; returns the trained system. Nothing is written before all that can be checked is checked."""
        try:
            with self.processes.one_speaks():
                return self._execute()
        finally:
            if self.tracker:
                self.tracker.close()

    def _execute(self) -> LatentWire:
        check_devices(self.config.system)
        versions_of(self.config.evaluation.rivals)
        self.origin = Origin.of(self.config)
        if self.origin and self.fresh and self.origin.folder.resolve().is_relative_to(self.folder.resolve()):
            raise ConfigError(f"checkpoint.init_from: --fresh would remove {self.origin.folder}")
        self._check_codec()
        passages = load_passages(self.config.data, "train", self.config.data.samples)
        if self.evaluates:  # what cannot be loaded should be known before hours of training
            load_passages(self.config.data, "validation", self.config.evaluation.samples)
        self.texts = load_texts(self.config.data.text_path) if self.config.data.text_path else []
        seed_everything(self.config.system.seed)
        profiled = self.config.diagnostics.profile_memory
        if profiled:
            reset_peak()
        self.system = LatentWire.build(self.config, self.config.curriculum.train_only)
        loaded = {"stage": "load", "memory_mb": peak_memory_mb()}
        if self.origin:
            self.origin.take_up(self.system)
        self.prepared = self._prepare(passages)
        self.fingerprint = data_fingerprint([p for p, _ in self.prepared])
        if self.processes.is_main:
            self.start()
        self.processes.wait()
        if profiled:
            self._record(loaded)
        lora = self.config.features.use_lora
        baselines = {name: list(self._baselines(r)) for name, r in self.system.receivers.items()} if lora else {}
        if lora and self.config.losses.distils:  # the teachers
            for receiver in self.system.receivers.values():
                self._tune(receiver, TEXT)
        new = {name: r for name, r in self.system.receivers.items() if not (self.origin and name in self.origin.known)}
        if lora:
            for receiver in new.values():
                self._tune(receiver, LATENT)
                receiver.add_adapter(LATENT)  # also where slot tuning is left out
        if new:
            with self.processes.main_first():
                self._closed_form(new)
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
            made = "codec" in self.stages or _is_done(self._stage("codebooks"))
            there = set(own.learned) if made else set()
        if not self.evaluates or not isinstance(codec, LearnedCodec):
            return
        if codec.name not in there:
            raise ConfigError(f"evaluation.codec: {codec.name!r} needs a codebook, and there will be none here")
        if codec.layers > own.layers:
            raise ConfigError(f"evaluation.codec: {codec} has more layers than codec.layers = {own.layers}")

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the system as it is, and of what came with the origin where only a part is trained."""
        if not self.processes.is_main:
            return
        beside = self.origin.folder if self.origin and self.config.curriculum.train_only else None
        save_checkpoint(folder, self.system, self.command, beside)

    @property
    def last(self) -> Path:
        """The checkpoint at the end of the run."""
        return self.folder / "last"

    # ---- data -----------------------------------------------------------------------------------------------------

    def _prepare(self, passages: Sequence[Passage]) -> list[tuple[Passage, Prepared]]:
        """Tokenize the training passages; those that are too long for data.max_context_tokens are left out."""
        out = []
        for passage in passages:
            prepared = self._prepare_one(passage)
            if prepared is not None and passage.questions:
                out.append((passage, prepared))
        print(
            f"data: {len(out)} of {len(passages)} training passages have at most "
            f"{self.config.data.max_context_tokens} tokens and fit sender and receivers",
            flush=True,
        )
        return out

    def _texts_for_closed_form(self) -> Iterator[Prepared]:
        """Training passages and plain text in turn, up to closed_form.passages."""
        left = self.config.curriculum.closed_form.passages + self.config.curriculum.closed_form.held_out
        known = iter(p for _, p in self.prepared)
        plain = iter(self.texts)
        while left > 0:
            before = left
            for prepared in (next(known, None), self._next_plain(plain)):
                if prepared is not None and left > 0:
                    left -= 1
                    yield prepared
            if left == before:
                return

    def _next_plain(self, texts: Iterator[str]) -> Prepared | None:
        for number, text in enumerate(texts):
            prepared = self._prepare_one(Passage(f"text-{number}", text, ()))
            if prepared is not None and len(prepared[0].ids) > 32:
                return prepared
        return None

    def _prepare_one(self, passage: Passage) -> Prepared | None:
        """A passage as token ids, or None where it is longer than what is trained on."""
        sent = self.system.sender.tokenize(passage.context)
        if sent.tokens > self.config.data.max_context_tokens or self.system.sender.refusal(sent):
            return None
        texts = {name: self.system.prepare_for(r, passage, sent) for name, r in self.system.receivers.items()}
        fits = all(texts[name].positions <= r.lm.anatomy.max_positions for name, r in self.system.receivers.items())
        return (sent, texts) if fits else None

    # ---- stages ---------------------------------------------------------------------------------------------------

    def _tune(self, receiver: Receiver, reads: str) -> None:
        kind, stage = self._tuning_stage(reads)
        texts = [texts[receiver.name] for _, (_, texts) in self.prepared]
        if not self._steps(epoch_steps(texts, self.config), stage):
            return
        key = self._tuning_key(receiver, texts, reads)
        kept = cached_folder(self.cache, key)
        if self.processes.agreed((kept / INDEX).is_file()):  # another run may finish it while the processes look
            print(f"{kind} of {receiver.name}, {reads}: taken from {kept}", flush=True)
            load_tuned(kept, receiver, reads)
        elif kind in self.stages or _is_done(self._stage(tuning_name(receiver, reads))):
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
        kept = (self.last / "baselines" / f"{receiver.name}-{LLMLINGUA}.safetensors").is_file()
        kept = kept or _is_done(self._stage(tuning_name(receiver, LLMLINGUA)))
        if kept or LLMLINGUA in self.config.evaluation.rivals:
            yield LLMLINGUA

    def _tuning_stage(self, reads: str) -> tuple[str, TuningStage]:
        curriculum = self.config.curriculum
        return ("slot_tuning", curriculum.slot_tuning) if reads == LATENT else ("baselines", curriculum.baselines)

    def _tuning_key(self, receiver: Receiver, texts: Sequence[ReceiverText], reads: str) -> dict[str, Any]:
        stage = self._tuning_stage(reads)[1]
        steps = self._steps(epoch_steps(texts, self.config), stage)
        origin = self.origin.files if self.origin and receiver.name in self.origin.known else None
        key = tuning_key(receiver, self.config, reads, self.fingerprint, steps) | {"origin": origin}
        if stage.lr_scale != 1.0:
            key["lr_scale"] = stage.lr_scale
        if reads == LATENT and self.config.losses.distils:
            key["teacher"] = self._tuning_key(receiver, texts, TEXT)
        return key

    def _closed_form(self, new: dict[str, Receiver]) -> None:
        """Encoder and generators, or only those of new receivers where the encoder comes from a checkpoint."""
        if self.origin is None and self.config.encoder.type != "backbone":
            self._start_readers()
            return
        done = self._stage("closed_form") / "done"
        if _is_done(done.parent):
            print("closed_form: done before", flush=True)
            self.system.load_state_dict(load_folder(done))
        elif "closed_form" not in self.stages:
            self._refuse_to_go_on("closed_form")
        else:
            stage, started = self.config.curriculum.closed_form, time.perf_counter()
            if self.tracker:
                self.tracker.open("closed_form")
            seen = 0

            def report(rows: int) -> None:
                nonlocal seen
                seen += rows
                if seen // 2000 != (seen - rows) // 2000:
                    print(f"closed_form: {seen} windows, {time.perf_counter() - started:.0f} s", flush=True)

            asked = [texts for _, (_, texts) in self.prepared[stage.held_out :][: stage.importance_passages]]
            sums = done.parent / "sums"
            if self.config.diagnostics.profile_memory:
                reset_peak()
            texts = self._texts_for_closed_form()
            how: dict[str, Any] = {"held_out": stage.held_out, "ridge": stage.ridge, "report": report, "state": sums}
            if self.origin:
                scores = fit_generators(self.system.sender, new, texts, **how)
            else:
                floor = stage.importance_floor
                scores = closed_form.fit(
                    self.system, texts, band=stage.band, asked=asked, importance_floor=floor, **how
                )
            seconds = round(time.perf_counter() - started, 1)
            self._record({"stage": "closed_form", "r2": scores, "seconds": seconds, "memory_mb": peak_memory_mb()})
            print(f"closed_form: held-out R² {scores}, {seconds} s", flush=True)
            save_folder(done, self.system.state_dict(), {"r2": scores})
            shutil.rmtree(sums, ignore_errors=True)

    def _start_readers(self) -> None:
        """What readers start from where an encoder has no closed form; a part of the end-to-end stage."""
        if "end_to_end" not in self.stages or _is_done(self._stage(EndToEnd.name)):
            return
        done = self._stage("reader_start") / "done"
        if _is_done(done.parent):
            self.system.load_state_dict(load_folder(done))
            return
        kind = self.config.encoder.type
        print(
            f"closed_form: left out, as it solves encoder.type = 'backbone' and not {kind!r}; readers start from the "
            "statistics of what they have to make",
            flush=True,
        )
        standardise(self.system, islice(self._texts_for_closed_form(), STATISTICS_PASSAGES))
        save_folder(done, self.system.state_dict(), {})

    def _end_to_end(self) -> bool:
        """Whether the system is trained to the end now (which may mean no step at all, if so configured)."""
        if "end_to_end" not in self.stages and not _is_done(self._stage(EndToEnd.name)):
            self._refuse_to_go_on(EndToEnd.name)
            return False
        module = EndToEnd(self.system, [p for _, p in self.prepared], self.config)
        self._fit(module, self.config.curriculum.end_to_end, [EpochCheckpoints(self)])
        return True

    def _codec(self) -> None:
        prepared = [p for _, p in self.prepared]
        fitted = self._stage("codebooks") / "done"
        if not self.config.codec.learned or not ("codec" in self.stages or _is_done(fitted.parent)):
            return
        if not self.config.curriculum.train_only:  # else the codebooks came with the sender
            with self.processes.main_first():
                self._codebooks(fitted, prepared)
        if "codec" in self.stages or _is_done(self._stage(CodecTuning.name)):
            self._fit(CodecTuning(self.system, prepared, self.config), self.config.curriculum.codec)

    def _codebooks(self, fitted: Path, prepared: Sequence[Prepared]) -> None:
        if _is_done(fitted.parent):
            self.system.sender.codebooks |= codebooks_in(load_folder(fitted))
        else:
            started = time.perf_counter()
            scores = codec.fit(self.system, prepared, self.config)
            seconds = round(time.perf_counter() - started, 1)
            self._record({"stage": "codebooks", **scores, "seconds": seconds})
            for name, bits in scores["bits_per_latent"].items():
                kept = scores["kept"][name]
                print(f"codebook of {name}: {bits:.1f} bits a latent keep {kept:.3f} of the variance", flush=True)
            state = {stem: t for stem, t in self.system.state_dict().items() if stem.startswith(CODECS)}
            save_folder(fitted, state, scores)

    def _refuse_to_go_on(self, missing: str, of: str = "") -> None:
        """ConfigError where a later stage is asked for while this one was neither done before nor asked for."""
        later = [s for s in STAGES[STAGES.index(missing) + 1 : STAGES.index("baselines")] if s in self.stages]
        if later:
            raise ConfigError(f"--stages: {later[0]} needs {missing}{of}, which was not done in {self.folder}")

    def _stage(self, name: str) -> Path:
        """The folder of a stage: its resumable states, and done/."""
        return self.folder / "stages" / name.replace("/", "-")

    def _steps(self, steps_per_epoch: int, stage: TuningStage) -> int:
        full = stage.epochs * steps_per_epoch // self.config.optimizer.accumulation
        if not full:
            raise ConfigError(
                f"optimizer.accumulation: a step of {self.config.optimizer.accumulation} micro-batches is more than "
                f"the {stage.epochs * steps_per_epoch} that there are"
            )
        return full if stage.max_steps is None else min(full, stage.max_steps)

    def _record(self, record: dict[str, Any]) -> None:
        """One line of diagnostics.jsonl, which the tracker gets as well."""
        if not self.processes.is_main:
            return
        append_jsonl(self.folder / "diagnostics.jsonl", record)
        if self.tracker:
            self.tracker.log(record)

    def _fit(self, module: TrainModule, stage: TuningStage, callbacks: Sequence[Callback] = ()) -> None:
        folder = self._stage(module.name)
        total = self._steps(module.steps_per_epoch, stage)
        if _is_done(folder):
            print(f"{module.name}: done before", flush=True)
            module.load_state_dict(load_folder(folder / "done"))
            return
        if not total:
            return
        hint = "The same command goes on from there."
        trainer = Trainer(
            module, self.config, folder, total, lr_scale=stage.lr_scale, callbacks=callbacks, resume_hint=hint
        )
        trainer.restore()
        if trainer.step:
            print(f"{module.name}: goes on from step {trainer.step}", flush=True)
        if self.processes.is_main:
            log = StepLog(self._record, self.config.diagnostics.log_every, total, trainer.step, module.name)
            trainer.callbacks.append(log)
        if self.tracker:
            self.tracker.open(module.name)  # before the first step, or it would be in vain
        trainer.fit()
        if trainer.memory.enabled:
            self._record({"stage": module.name, "memory_mb": trainer.memory.highest})
        if not self.processes.is_main:
            return
        trained = {group.name: sum(p.numel() for p in group.parameters) for group in trainer.groups}
        save_folder(folder / "done", module.state_dict(), {"step": trainer.step, "parameters": trained})
        for state in folder.glob("step_*"):
            shutil.rmtree(state)


class EpochCheckpoints(Callback):
    """A checkpoint for evaluation after every epoch."""

    def __init__(self, run: Run):
        self.run = run

    def on_epoch(self, epoch: int) -> None:
        self.run.save(self.run.folder / f"epoch{epoch}")


def _is_done(stage: Path) -> bool:
    return (stage / "done" / INDEX).is_file()
