"""A whole run: the stages in order, each skipped when it is done and resumed when it was cut off.

Several processes may share a run, on a disk that all of them see; its configuration is then that of one process with
the accumulation of all of them, which could go on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from latentwire.backbone.anatomy import describe
from latentwire.backbone.devices import check_devices
from latentwire.backbone.load import load_config
from latentwire.checkpoint.parts import load_codebooks
from latentwire.config import Config
from latentwire.config.sections.training import STAGES
from latentwire.core.errors import ConfigError
from latentwire.core.names import LATENT, TEXT
from latentwire.core.paths import cache_dir
from latentwire.core.seeds import seed_everything
from latentwire.data import load_passages, load_texts
from latentwire.data.example import Passage
from latentwire.diagnostics.memory import peak_memory_mb, reset_peak
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.rivals import versions_of
from latentwire.training.codebooks import most_layers
from latentwire.training.fitting import fit
from latentwire.training.folder import RunFolder, own_folder
from latentwire.training.loop import Callback
from latentwire.training.material import Material
from latentwire.training.origin import Origin
from latentwire.training.processes import Processes
from latentwire.training.requirements import check_requirements
from latentwire.training.solving import find_codebooks, learn_salience, order_heads, recount_codes, solve_closed_form
from latentwire.training.stages.codec import CodecTuning
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import begin_adapter
from latentwire.training.tuning import baselines_of, keep_baseline, tune
from latentwire.training.work import Work
from latentwire.wire.codebook import Codebook
from latentwire.wire.codecs import LearnedCodec
from latentwire.wire.default import default_codec


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

    def execute(self) -> LatentWire:
        """Run every stage; returns the trained system. Nothing is written before all that can be checked is checked."""
        try:
            with self.processes.one_speaks():
                return self._execute()
        finally:
            self.folder.close()

    def _execute(self) -> LatentWire:
        work = self._begin()
        main_first, new = self.processes.main_first, work.new_receivers
        if work.lacks_salience:
            main_first(partial(learn_salience, work))
        work.material.choose_ahead()
        main_first(partial(order_heads, work, new))
        baselines = self._keep_baselines(work)
        self._tune_slots(work, new)
        if new or (work.origin and work.origin.lacks_companion):
            main_first(partial(solve_closed_form, work, new))
        trained = self._end_to_end(work)
        if trained:
            self._codec(work)
            work.save(self.folder.last)
        for name, own in baselines.items():
            for reads in own:
                tune(work, work.system.receivers[name], reads)
        if trained and self.config.features.use_lora:  # again, now with the baselines' adapters
            work.save(self.folder.last)
            work.complete_epochs()
        return work.system

    def _check(self) -> Origin | None:
        """Refuse what cannot be done before anything is loaded; returns the checkpoint that the run starts from."""
        check_requirements(self.config)
        check_devices(self.config)
        if not self.fresh:
            self.folder.check()
        versions_of(self.config.evaluation.rivals)
        if self.evaluates and self.config.evaluation.lm_bytes:  # the sender's model has to be a causal one
            describe(load_config(self.config.encoder.model), self.config.encoder.model)
        origin = Origin.of(self.config)
        if origin and self.fresh and self.folder.holds(origin.folder):
            raise ConfigError(f"checkpoint.init_from: --fresh would remove {origin.folder}")
        self._check_codec(origin)
        self._check_stages(origin)
        return origin

    def _begin(self) -> Work:
        """Check and load everything, then begin the folder or go on with it."""
        origin = self._check()
        passages = load_passages(self.config.data, "train", self.config.data.samples)
        asked: list[Passage] = []  # what cannot be loaded or read should be known before hours of training
        if self.evaluates:
            asked = load_passages(self.config.data, "validation", self.config.evaluation.samples)
        texts = load_texts(self.config.data.text_path) if self.config.data.text_path else []
        seed_everything(self.config.system.seed)
        profiled = self.config.diagnostics.profile_memory
        if profiled:
            reset_peak()
        system = LatentWire.build(self.config, self.config.curriculum.train_only)
        loaded = {"stage": "load", "memory_mb": peak_memory_mb()}
        if origin:
            origin.take_up(system)
        for passage in asked:
            system.prepare_to_ask(passage)
        material = Material(system, self.config, passages, texts)
        cache = Path(self.config.checkpoint.tuned_cache) if self.config.checkpoint.tuned_cache else cache_dir()
        work = Work(
            self.config, self.folder, self.processes, self.stages, self.command, system, material, origin, cache
        )
        if work.lacks_salience:
            material.check_salience()
        self.processes.by_main(lambda: self.folder.start(self.command, origin, material.inputs(), self.fresh))
        if profiled:
            self.folder.record(loaded)
        return work

    def _check_stages(self, origin: Origin | None) -> None:
        """ConfigError where a stage that was asked for has nothing to do, as what it makes came with the checkpoint."""
        if origin is None or set(self.stages) == set(STAGES):
            return
        trained = self.config.curriculum.train_only or self.config.model.chosen
        if set(trained) - origin.fixed:
            return
        idle = {"slot_tuning"} if origin.lacks_companion or origin.lacks_salience else {"slot_tuning", "closed_form"}
        for stage in sorted(idle & set(self.stages)):
            raise ConfigError(f"--stages: {stage}: all receivers have that from {origin.folder} already")

    def _check_codec(self, origin: Origin | None) -> None:
        """ConfigError where the codec to evaluate with is a learned one that there will be no codebook of."""
        own = self.config.codec
        if origin and self.config.curriculum.train_only:  # its codebooks stay, and there are no others
            for kind in own.learned:
                if kind not in origin.codebooks:
                    raise ConfigError(f"codec.learned: {origin.folder} has no codebook of {kind!r}")
            self._check_layers(_layers_of(load_codebooks(origin.folder)))
        elif not self.fresh and self.folder.is_done("codebooks"):
            self._check_layers(_layers_of(load_codebooks(self.folder.done("codebooks"))))
        else:
            made = own.learned if "codec" in self.stages else ()
            self._check_layers({name: most_layers(name, own, self.config.encoder.read) for name in made})

    def _check_layers(self, layers: Mapping[str, int]) -> None:
        """ConfigError where the codec to evaluate with has no codebook among those of so many layers, or more layers
        than its own."""
        codec = default_codec(self.config)
        if not self.evaluates or not isinstance(codec, LearnedCodec):
            return
        if codec.name not in layers:
            raise ConfigError(f"evaluation.codec: {codec.name!r} needs a codebook, and there will be none here")
        if codec.layers > layers[codec.name]:
            raise ConfigError(
                f"evaluation.codec: {codec} has more than the {layers[codec.name]} layers of its codebook"
            )

    def _keep_baselines(self, work: Work) -> dict[str, list[str]]:
        """What each receiver is tuned to read in the end, to be compared with. What the run has of that, and of the
        teachers, is taken up now, as last/ is written anew before."""
        if not self.config.features.use_lora:
            return {}
        baselines = {}
        for name, receiver in work.system.receivers.items():
            baselines[name] = list(baselines_of(work, receiver))
            for reads in dict.fromkeys([TEXT, *baselines[name]]):
                keep_baseline(work, receiver, reads)
        return baselines

    def _tune_slots(self, work: Work, new: dict[str, Receiver]) -> None:
        """LoRA that reads latents: tuned for new receivers, begun for all."""
        if not self.config.features.use_lora:
            return
        receivers = work.system.receivers.values()
        if self.config.losses.distils:  # the teachers
            for receiver in receivers:
                tune(work, receiver, TEXT)
        for receiver in new.values():
            tune(work, receiver, LATENT)
        for receiver in receivers:  # slot tuning may be left out, and what one starts from be without
            begin_adapter(receiver, LATENT, self.config.system.seed)

    def _end_to_end(self, work: Work) -> bool:
        """Whether the system is trained to the end now (which may mean no step at all, if so configured)."""
        if "end_to_end" not in self.stages and not self.folder.is_done(EndToEnd.name):
            work.refuse_to_go_on(EndToEnd.name)
            return False
        module = EndToEnd(work.system, work.material.prepared, self.config)
        stage = self.config.curriculum.end_to_end
        fit(work, module, stage, [EpochCheckpoints(work, stage.epochs)])
        return True

    def _codec(self, work: Work) -> None:
        asked = "codec" in self.stages
        if not self.config.codec.learned or not (asked or self.folder.is_done("codebooks")):
            return
        own = not self.config.curriculum.train_only  # else the codebooks came with the sender
        if own:
            self.processes.main_first(partial(find_codebooks, work))
            self._check_layers(_layers_of(work.system.sender.codebooks))  # may be fewer than were asked for
        if asked or self.folder.is_done(CodecTuning.name):
            fit(work, CodecTuning(work.system, work.material.prepared, self.config), self.config.curriculum.codec)
        if own and self.folder.is_done(CodecTuning.name):
            self.processes.main_first(partial(recount_codes, work))


def _layers_of(books: Mapping[str, Codebook]) -> dict[str, int]:
    return {name: len(book.layers) for name, book in books.items()}


class EpochCheckpoints(Callback):
    """A checkpoint for evaluation after every epoch; a last step may go a little beyond the last one."""

    def __init__(self, work: Work, epochs: int):
        self.work = work
        self.epochs = epochs

    def on_epoch(self, epoch: int) -> None:
        if epoch <= self.epochs:
            self.work.save(self.work.folder.path / f"epoch{epoch}")
