"""What a run starts from: the checkpoint that checkpoint.init_from names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire.checkpoint.index import codebooks_of, find_checkpoint, load_config_of, sender_fingerprint
from latentwire.checkpoint.models import other_models
from latentwire.checkpoint.parts import State, adapter_stem, merge, part_of, reader_stem
from latentwire.checkpoint.tensors import load_folder, read_info
from latentwire.config import Config
from latentwire.config.form import unlike_forms
from latentwire.config.sections.latents import EncoderConfig
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import read_json, write_json
from latentwire.core.names import CODEBOOKS, ORIGIN, READERS, SENDER, TEXT, stem_of
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.companion import Companion
from latentwire.encoder.salience import Salience
from latentwire.features import FEATURES
from latentwire.model.system import LatentWire, load_receiver_state, load_sender_state

ADDITIONAL = {f"use_{name}" for name in FEATURES} | {"use_latent_refiner", "use_sender_lora"}
NOT_ON_LATENTS = {"use_deep_prefix", "use_lora", "use_sender_lora", "use_prefix"} | {
    f"use_{name}" for name, feature in FEATURES.items() if feature.train_only
}
"""Features that wider latents are nothing to: they do not read them, or start afresh in every run."""
READ_LATENTS = {"reader.generator.linear": 0, "reader.generator.centre": 0, "reader.generator.mlp.0.weight": 1}
"""Tensors of a receiver that have a dimension as wide as latents, and which it is."""


class Origin:
    """A checkpoint whose sender and receivers a run takes up.

    Receivers of the run that it lacks are new: they start afresh. `files`, with their hashes, tell it from others.
    `lacks_companion`: the run's sender has a companion and its own has none, so that latents get wider.
    `lacks_salience`: the run's sender chooses tokens by it and its own did not, so that it has to be learned.
    `shown_anew`: those of its receivers whose heads show other tokens in the run (`deep_prefix.ranked`): their readers
    start afresh, and their LoRA as the one that was tuned on text, where there is one.
    """

    def __init__(self, name: str | Path):
        self.folder = find_checkpoint(name)
        self.config = load_config_of(self.folder)
        sender_fingerprint(self.folder)  # without a sender there is nothing to start from
        self.files: dict[str, Any] = read_info(self.folder)["files"]
        stems = [stem_of(name) for name in self.files]
        self.known = {stem.removeprefix(READERS) for stem in stems if stem.startswith(READERS)}
        self.codebooks = codebooks_of(self.folder)
        self.lacks_companion = self.lacks_salience = False
        self.shown_anew: set[str] = set()

    @classmethod
    def of(cls, config: Config) -> Origin | None:
        """The checkpoint that a run with this configuration starts from, if any; ConfigError where they do not go
        together."""
        if not config.checkpoint.init_from:
            return None
        origin = cls(config.checkpoint.init_from)
        origin._check_receivers(config)
        origin.lacks_companion = origin._may_get_companion(config)
        origin._check_form(config)
        origin.shown_anew = origin._shown_anew(config)
        ours, theirs = (c.encoder.keep_by == "salience" for c in (config, origin.config))
        origin.lacks_salience = ours and not theirs
        return origin

    @property
    def fixed(self) -> set[str]:
        """Receivers whose readers and LoRA are taken over as they are."""
        return self.known - self.shown_anew

    def take_up(self, system: LatentWire) -> None:
        """Give a system the state of the checkpoint; features that it knows nothing of start as they are."""
        state = load_folder(self.folder)
        if not system.config.curriculum.train_only:  # latents will change, and codebooks are found anew
            state = {stem: tensors for stem, tensors in state.items() if not stem.startswith(CODEBOOKS)}
        encoder = system.sender.encoder
        if self.lacks_companion:
            assert isinstance(encoder, BackboneEncoder) and encoder.companion is not None
            state = widened(state, encoder.companion)
        if self.config.encoder.keep_by != system.config.encoder.keep_by:
            assert isinstance(encoder, BackboneEncoder)
            state = state | {SENDER: choosing_by(state[SENDER], encoder.salience)}
        for name in self.shown_anew:
            state = state | {reader_stem(name): begun_anew(name, state)}
        load_sender_state(system.sender, state, start=True)
        for name, receiver in system.receivers.items():
            if name in self.known:
                load_receiver_state(receiver, state, start=True)
        new = [name for name in system.receivers if name not in self.known]
        print(f"starting from {self.folder}" + (f"; new: {', '.join(new)}" if new else ""), flush=True)

    def remember(self, run: Path) -> None:
        """Note in a run's folder what it started from; ConfigError where that has become another checkpoint since."""
        note = run / ORIGIN
        if note.is_file() and read_json(note) != self.files:
            raise ConfigError(
                f"checkpoint.init_from: {self.folder} has changed since this run started from it; choose another "
                "folder, or --fresh"
            )
        write_json(note, self.files)

    def _check_receivers(self, ours: Config) -> None:
        """New receivers can be had; with train_only, all but those named come from here, and none is left behind."""
        names, only = set(ours.model.chosen), ours.curriculum.train_only
        if names != self.known and ours.encoder.latent_private_len:
            why = "and has none for a new one" if names - self.known else "so none of them can be left out"
            raise ConfigError(
                f"encoder.latent_private_len: the sender of {self.folder} sets latents aside for each of its "
                f"receivers, {why}"
            )
        if only is None:
            return
        for name in sorted(names - self.known - set(only)):
            raise ConfigError(f"curriculum.train_only: {name!r} is not among them, but {self.folder} has no such one")
        for name in sorted(self.known - names):
            raise ConfigError(f"model.receivers: {name!r} is missing: with train_only, all of {self.folder} are kept")

    def _may_get_companion(self, ours: Config) -> bool:
        """Whether a companion comes in addition; ConfigError where it cannot, or where nothing could be fitted."""
        theirs, asked = self.config, ours.curriculum.closed_form.companion_for
        if ours.encoder.companion is None or theirs.encoder.companion is not None or ours.curriculum.train_only:
            if asked:
                raise ConfigError(
                    f"curriculum.closed_form.companion_for: does nothing, as the sender of {self.folder} stays as it is"
                )
            return False
        for name in asked or []:
            if name not in self.known:
                raise ConfigError(f"curriculum.closed_form.companion_for: {name!r} is not in {self.folder}")
        if not self.known & set(ours.model.chosen):
            raise ConfigError(f"encoder.companion: no receiver of {self.folder} is in model.receivers to fit it to")
        if ours.encoder.own_d_z != theirs.encoder.d_z:
            raise ConfigError(
                f"encoder.d_z: {ours.encoder.d_z} without the companion's {ours.encoder.companion_d_z} is not the "
                f"{theirs.encoder.d_z} of {self.folder}"
            )
        for feature, on in theirs.features:
            if on and feature not in NOT_ON_LATENTS:
                raise ConfigError(
                    f"encoder.companion: features.{feature} of {self.folder} works on latents of the width that they "
                    "have, and they would get wider"
                )
        return True

    def _shown_anew(self, ours: Config) -> set[str]:
        """Receivers whose heads show other tokens; ConfigError for one that stays as it is."""
        names, only = self.known & set(ours.model.chosen), ours.curriculum.train_only
        ranked, before = ours.deep_prefix.ranked, self.config.deep_prefix.ranked
        anew = {name for name in names if ranked.get(name) != before.get(name)}
        if anew and self.lacks_companion:
            raise ConfigError("deep_prefix.ranked: first a companion for the readers there are, then others")
        if anew and ours.encoder.latent_private_len:
            raise ConfigError(f"deep_prefix.ranked: {self.folder} has others, and sets latents aside for each receiver")
        for name in sorted(anew - set(only or anew)):
            raise ConfigError(f"deep_prefix.ranked: with train_only, {name!r} stays as {self.folder} has it")
        return anew

    def _check_form(self, ours: Config) -> None:
        """The sender's models and form are the checkpoint's, and so are those of receivers.

        Features that the checkpoint was trained without may come in addition, unless some receivers stay as they are;
        where all of these do, the new ones may have LoRA or not. A companion may come in addition, and tokens may be
        chosen otherwise, or shown by other heads. Where all is trained, questions may be put otherwise, and windows in
        which tokens are chosen may have another size.
        """
        theirs, only = self.config, ours.curriculum.train_only
        new = [k for k, on in ours.features if on and not getattr(theirs.features, k) and k in ADDITIONAL]
        free = set() if only else {f"features.{key}" for key in new} | {key.removeprefix("use_") for key in new}
        free |= {"deep_prefix.ranked"} if only else {"deep_prefix.ranked", "anchor.question"}
        if self.lacks_companion:
            free |= {"encoder.d_z"} | {f"encoder.{key}" for key in EncoderConfig.model_fields if "companion" in key}
        if not only and theirs.encoder.keep is not None:
            free |= {f"encoder.{key}" for key in ("window", "keep_by", "keep_from", "keep_order")}
        if only and not set(only) & self.known:
            free |= {"features.use_lora"}
        for dotted, trained, asked in (*other_models(theirs, ours), *unlike_forms(theirs, ours)):
            if not {dotted, dotted.split(".")[0]} & free:
                raise ConfigError(
                    f"checkpoint.init_from: {self.folder} was trained with {dotted} = {trained!r}, not {asked!r}"
                )


def widened(state: State, companion: Companion) -> State:
    """A state for latents that have a companion's dimensions as well, which nothing has been made of yet."""
    out = state | {SENDER: state[SENDER] | merge(encoder=merge(companion=companion.state_dict()))}
    for stem in (stem for stem in state if stem.startswith(READERS)):
        group = out[stem] = dict(state[stem])
        for key in READ_LATENTS.keys() & group.keys():
            shape = list(group[key].shape)
            shape[READ_LATENTS[key]] = companion.weight.shape[1]
            group[key] = torch.cat([group[key], group[key].new_zeros(shape)], READ_LATENTS[key])
    return out


def without(group: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """A group of tensors without those of a part."""
    return {key: tensor for key, tensor in group.items() if not key.startswith(f"{part}.")}


def begun_anew(receiver: str, state: State) -> dict[str, Tensor]:
    """A receiver's tensors without its reader. LoRA that has read other slots is worth less than that which reads text:
    it knows the passages of its training by heart."""
    own = without(state[reader_stem(receiver)], "reader")
    text = state.get(adapter_stem(receiver, TEXT), {})
    return without(own, "lora") | merge(lora=part_of(text, "lora")) if text else own


def choosing_by(sender: dict[str, Tensor], salience: Salience | None) -> dict[str, Tensor]:
    """A sender's state with a salience that is not fitted yet, or with none."""
    state = without(sender, "encoder.salience")
    return state if salience is None else state | merge(encoder=merge(salience=salience.state_dict()))
