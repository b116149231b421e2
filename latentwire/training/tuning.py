"""LoRA tuned on a receiver alone, once for all runs: kept in the user's cache under all that decides it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latentwire.backbone.load import TOKENIZER_FILES, files_digest
from latentwire.checkpoint.parts import adapter_stem, part_of
from latentwire.checkpoint.tensors import load_folder, save_folder
from latentwire.config.schema import Config
from latentwire.config.sections.latents import EncoderConfig
from latentwire.config.sections.training import TuningStage
from latentwire.core.errors import ConfigError
from latentwire.core.hashing import stable_hash
from latentwire.core.names import ASKING, INDEX, LATENT, LLMLINGUA, TEXT, TOKEN_BUDGET, file_of
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.reader.slots import SlotReader
from latentwire.training.fitting import fit
from latentwire.training.module import epoch_batches
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning, tuning_name
from latentwire.training.work import Work

END_TO_END = {
    "losses": {"align_weight", "manifold_weight", "latent_scale_weight", "output_rms_weight"},
    "adapter": {"hidden", "color", "learn_gain"},
}
"""Options that play no part before there is a wire."""
WHOLE_TEXT = (TEXT, ASKING)
"""What is read without regard to how a sender cuts it."""


def tune(work: Work, receiver: Receiver, reads: str) -> None:
    """Give a receiver the LoRA that reads contexts of this form: the kept one, or one tuned now where stages allow.

    None that reads latents where it has been trained on to the end.
    """
    if reads == LATENT and work.folder.is_done(EndToEnd.name):
        return  # the kept one may have come from a cache that is gone
    kind, stage = _stage_of(work, reads)
    texts = work.material.of(receiver)
    if not work.steps(epoch_batches(texts, work.config.optimizer.batch_size), stage):
        return
    key = _key_of(work, receiver, texts, reads)
    kept, done = cached_folder(work.cache, key), work.folder.is_done(tuning_name(receiver, reads))
    if work.processes.agreed((kept / INDEX).is_file()):  # another run may finish it while the processes look
        print(f"{kind} of {receiver.name}, {reads}: taken from {kept}", flush=True)
        load_tuned(kept, receiver, reads)
    elif kind in work.stages or done:
        # Only now, so that no adapter is there that was never trained.
        fit(work, SlotTuning(receiver, texts, work.config, reads), stage)
        if work.processes.is_main and not done:  # what was done before may have been done on another machine
            save_tuned(kept, receiver, reads, key)
    elif reads == LATENT:
        work.refuse_to_go_on(kind, f" of {receiver.name!r}")
    elif reads in receiver.adapters:
        return  # as last/ has it
    elif reads == TEXT and work.config.losses.distils and {"slot_tuning", "end_to_end"} & set(work.stages):
        raise ConfigError(f"--stages: distillation needs the text-tuned {receiver.name!r}: do {kind} first or as well")


def keep_baseline(work: Work, receiver: Receiver, reads: str) -> None:
    """Give a receiver the LoRA that the run's last/ has for it, unless baselines are tuned now: it may have come from a
    cache that is gone, and last/ is written anew."""
    stem = adapter_stem(receiver.name, reads)
    if "baselines" not in work.stages and _is_in_last(work, receiver, reads):
        state = part_of(load_folder(work.folder.last, [stem])[stem], "lora")
        receiver.add_adapter(reads).load_state_dict(state)


def baselines_of(work: Work, receiver: Receiver) -> Iterator[str]:
    """What a receiver is tuned to read in the end, to be compared with.

    A rival's LoRA that the run has stays, also one from the cache; so this looks before last/ is written anew.
    """
    if not work.config.losses.distils:  # else it was the teacher
        yield TEXT
    yield TOKEN_BUDGET
    kept = _is_in_last(work, receiver, LLMLINGUA) or work.folder.is_done(tuning_name(receiver, LLMLINGUA))
    if kept or LLMLINGUA in work.config.evaluation.rivals:
        yield LLMLINGUA


def _is_in_last(work: Work, receiver: Receiver, reads: str) -> bool:
    return (work.folder.last / file_of(adapter_stem(receiver.name, reads))).is_file()


def _stage_of(work: Work, reads: str) -> tuple[str, TuningStage]:
    curriculum = work.config.curriculum
    return ("slot_tuning", curriculum.slot_tuning) if reads == LATENT else ("baselines", curriculum.baselines)


def _key_of(work: Work, receiver: Receiver, texts: Sequence[ReceiverText], reads: str) -> dict[str, Any]:
    stage = _stage_of(work, reads)[1]
    steps = work.steps(epoch_batches(texts, work.config.optimizer.batch_size), stage)
    origin = work.origin.files if work.origin and receiver.name in work.origin.known else None
    key = tuning_key(receiver, work.config, reads, work.material.fingerprint, steps) | {"origin": origin}
    if stage.lr_scale != 1.0:
        key["lr_scale"] = stage.lr_scale
    encoder = work.system.sender.encoder
    if reads == LATENT and isinstance(encoder, BackboneEncoder) and encoder.salience is not None:
        key["salience"] = encoder.salience.digest
    if reads == LATENT and isinstance(receiver.reader, SlotReader) and receiver.reader.ranked:
        key["phases_of"] = receiver.reader.phases_of.tolist()
    if reads == LATENT and work.config.losses.distils:
        key["teacher"] = _key_of(work, receiver, texts, TEXT)
    return key


def tuning_key(receiver: Receiver, config: Config, reads: str, data: str, steps: int) -> dict[str, Any]:
    """All that decides the result of a tuning: two runs with equal keys give the same adapter."""
    key: dict[str, Any] = {
        "model": receiver.lm.name,
        "reads": reads,
        "dtype": str(receiver.lm.dtype),
        "data": data,
        "steps": steps,
        "questions_per_passage": config.data.questions_per_passage,
        "anchor": config.anchor.model_dump(),
        "lora": config.lora.model_dump(),
        "optimizer": config.optimizer.model_dump(
            exclude={"lr", "lr_encoder", "lr_sender", "lr_generator", "lr_generator_mlp", "max_bad_steps"}
        ),
        "seed": config.system.seed,
    }
    if reads not in WHOLE_TEXT:
        key["encoder"] = {
            "model": config.encoder.model,
            "window": config.encoder.window,
            "latent_len": config.encoder.latent_len,
        }
        if config.latent_layout.read is not None:  # a fixed number of windows, cut otherwise than those of backbone
            key["encoder"]["latents_read"] = config.latent_layout.read
        if digest := files_digest(config.encoder.model, TOKENIZER_FILES):  # which cuts the windows
            key["encoder"]["tokenizer"] = digest
    chooser = config.encoder.model if config.encoder.keep is not None and reads == LATENT else None
    if reads == LLMLINGUA:
        chooser = key["selected_by"] = config.evaluation.llmlingua_model
    digests = {name: files_digest(name) for name in (receiver.lm.name, chooser) if name}
    if any(digests.values()):
        key["files"] = digests
    if config.model.load_4bit:
        key["load_4bit"] = True
    if reads in (TOKEN_BUDGET, LLMLINGUA) and receiver.extra_positions:
        key["more_positions"] = receiver.extra_positions
    if reads == LATENT:
        if config.encoder.keep is not None:
            key["encoder"] |= {"keep": config.encoder.keep}
        for name in ("keep_from", "keep_order"):
            if getattr(config.encoder, name) != EncoderConfig.model_fields[name].default:
                key["encoder"] |= {name: getattr(config.encoder, name)}
        key |= {"slots": config.features.use_deep_prefix, "pattern": config.deep_prefix.pattern}
        key["losses"] = config.losses.model_dump(exclude=END_TO_END["losses"])
        key["calibration"] = (
            None if config.features.use_deep_prefix else config.adapter.model_dump(exclude=END_TO_END["adapter"])
        )
    return key


def cached_folder(cache: Path, key: dict[str, Any]) -> Path:
    """Where the tuning with this key is kept."""
    model = str(key["model"]).strip("/").replace("/", "--")
    return cache / "tuned" / f"{model}-{key['reads']}-{stable_hash(key)[:16]}"


def save_tuned(folder: Path, receiver: Receiver, reads: str, key: dict[str, Any]) -> None:
    """Keep a tuned adapter under its key."""
    save_folder(folder, {"lora": receiver.adapters[reads].state_dict()}, {"key": key})


def load_tuned(folder: Path, receiver: Receiver, reads: str) -> None:
    """Put a kept adapter on a receiver."""
    receiver.add_adapter(reads).load_state_dict(load_folder(folder)["lora"])
