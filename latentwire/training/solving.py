"""What a run finds without steps: fits in closed form, statistics and codebooks, each once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from torch.nn import Module

from latentwire.checkpoint.parts import State, register_codebooks
from latentwire.checkpoint.tensors import load_folder, save_folder
from latentwire.core.names import CODEBOOKS
from latentwire.diagnostics.memory import peak_memory_mb, reset_peak
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.receiver import Receiver
from latentwire.reader.slots import SlotReader
from latentwire.training.stages import closed_form, codec
from latentwire.training.stages.closed_form import TargetOptions
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.fixed_encoder import fit_generators
from latentwire.training.stages.importance import largest, rank_heads
from latentwire.training.stages.salience import fit_salience
from latentwire.training.stages.scratch import standardise
from latentwire.training.work import Work

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


def once(
    work: Work, name: str, load: Callable[[State], object], make: Callable[[], tuple[State, dict[str, Any]]]
) -> None:
    """Load what a run has found before under this name, or find it: `make` gives its tensors and what is said of it."""
    done = work.folder.done(name)
    if work.folder.is_done(name):
        print(f"{name}: done before", flush=True)
        load(load_folder(done))
    else:
        save_folder(done, *make())


def learn_salience(work: Work) -> None:
    """By what tokens are chosen: nothing can be read before that is known, whichever stages are worked on."""
    encoder = work.system.sender.encoder
    assert isinstance(encoder, BackboneEncoder) and encoder.salience is not None
    salience = SinglePart("salience", encoder.salience)
    _solve(work, "salience", partial(fit_salience, encoder), work.material.for_salience(), "auc", salience)


def order_heads(work: Work, receivers: dict[str, Receiver]) -> None:
    """Which heads show which tokens, for those of these receivers where deep_prefix.ranked asks for it."""
    for name in (name for name in receivers if name in work.config.deep_prefix.ranked):
        _order_heads_of(work, receivers[name])


def _order_heads_of(work: Work, receiver: Receiver) -> None:
    stage, reader = f"heads/{receiver.name}", receiver.reader
    assert isinstance(reader, SlotReader)

    def rank() -> tuple[State, dict[str, Any]]:
        texts = work.material.of(receiver)[: work.config.curriculum.closed_form.importance_passages]
        top = largest(rank_heads(receiver, texts))
        work.folder.record({"stage": stage, "layer.head": top})
        print(f"{stage}: share of layer.head in what answers hang on: {top}", flush=True)
        return {"heads": {"phases_of": reader.phases_of}}, {"layer.head": top}

    once(work, stage, lambda state: reader.phases_of.copy_(state["heads"]["phases_of"]), rank)


def solve_closed_form(work: Work, new: dict[str, Receiver]) -> None:
    """Encoder and generators, or only what a checkpoint lacks: a companion's part, generators of new receivers.

    Where receivers show other tokens than they did, a companion's part is first fitted again, to these receivers.
    """
    if work.origin is None and work.config.encoder.type != "backbone":
        _start_readers(work)
        return
    stage, system = work.config.curriculum.closed_form, work.system
    seen = work.material.prepared[stage.held_out :] or work.material.prepared  # all are set aside where text is plenty
    asked = [texts for _, texts in seen[: stage.importance_passages]]
    options = TargetOptions(stage.band, asked, stage.importance_floor)
    if work.origin is None:
        _solve_stage(work, "closed_form", partial(closed_form.fit, system, options=options))
    fit_companion = partial(closed_form.fit_companion, system, options=options)
    if work.config.encoder.companion and (work.origin is None or work.origin.lacks_companion):
        known = {name: r for name, r in system.receivers.items() if work.origin is None or name not in new}
        meant = {name: r for name, r in known.items() if name in (stage.companion_for or known)}
        _solve_stage(work, "closed_form/companion", partial(fit_companion, meant))
    elif work.config.encoder.companion and work.origin and not work.config.curriculum.train_only:
        anew = {name: new[name] for name in work.origin.shown_anew}
        if anew:
            closed_form.forget_companion(system, anew)
            _solve_stage(work, "closed_form/companion", partial(fit_companion, anew))
    if work.origin and new:
        _solve_stage(work, "closed_form", partial(fit_generators, system.sender, new))


def _solve_stage(work: Work, name: str, fit: Callable[..., dict[str, float]]) -> None:
    """A fit of the stage closed_form, where that may be worked on or it was done before."""
    if "closed_form" in work.stages or work.folder.is_done(name):
        _solve(work, name, fit, work.material.for_closed_form(), "r2")
    else:
        work.refuse_to_go_on("closed_form")


def _start_readers(work: Work) -> None:
    """What readers start from where an encoder has no closed form; a part of the end-to-end stage."""
    if "end_to_end" not in work.stages or work.folder.is_done(EndToEnd.name):
        return
    kind, system = work.config.encoder.type, work.system

    def start() -> tuple[State, dict[str, Any]]:
        print(
            f"closed_form: left out, as it solves encoder.type = 'backbone' and not {kind!r}; readers start from the "
            "statistics of what they have to make",
            flush=True,
        )
        standardise(system, islice(work.material.for_closed_form(), STATISTICS_PASSAGES))
        return system.state_dict(), {}

    once(work, "reader_start", system.load_state_dict, start)


def _solve(
    work: Work,
    name: str,
    fit: Callable[..., dict[str, float]],
    passages: Iterable[Any],
    measure: str,
    part: SinglePart | None = None,
) -> None:
    """A fit in closed form on some passages, if it was not done before.

    measure: what it returns; part: all that it changes, where that is not most of the system.
    """
    fitted, stage = part or work.system, work.config.curriculum.closed_form
    sums = work.folder.done(name).parent / "sums"
    started, seen = time.perf_counter(), 0

    def report(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen // 2000 != (seen - rows) // 2000:
            print(f"{name}: {seen} rows, {time.perf_counter() - started:.0f} s", flush=True)

    def solve() -> tuple[State, dict[str, Any]]:
        work.folder.track(name)
        if work.config.diagnostics.profile_memory:
            reset_peak()
        scores = fit(passages=passages, held_out=stage.held_out, ridge=stage.ridge, report=report, state=sums)
        seconds = round(time.perf_counter() - started, 1)
        took = {"seconds": seconds, "memory_mb": peak_memory_mb()}
        work.folder.record({"stage": name, measure: scores} | took)
        print(f"{name}: held-out {MEASURES[measure]} {scores}, {seconds} s", flush=True)
        return fitted.state_dict(), {measure: scores}

    once(work, name, fitted.load_state_dict, solve)
    shutil.rmtree(sums, ignore_errors=True)


def find_codebooks(work: Work) -> None:
    """Codebooks for the latents of the training passages."""
    started = time.perf_counter()

    def report(number: int) -> None:
        if number and number % 200 == 0:
            print(f"codebooks: {number} passages, {time.perf_counter() - started:.0f} s", flush=True)

    _keep_codebooks(work, "codebooks", partial(codec.fit, report=report))


def recount_codes(work: Work) -> None:
    """How often each code is used, once training with the codes has moved the latents."""
    _keep_codebooks(work, "frequencies", codec.recount)


def _keep_codebooks(work: Work, stage: str, find: Callable[..., dict[str, dict[str, float]]]) -> None:
    """Codebooks as `find` leaves them, or left them before."""
    system = work.system

    def make() -> tuple[State, dict[str, Any]]:
        started = time.perf_counter()
        scores = find(system, work.material.for_codebooks(), work.config)
        work.folder.record({"stage": stage, **scores, "seconds": round(time.perf_counter() - started, 1)})
        for name, bits in scores["bits_per_latent"].items():
            kept = f" keep {scores['kept'][name]:.3f} of the variance" if "kept" in scores else ""
            print(f"{stage} of {name}: {bits:.1f} bits a latent{kept}", flush=True)
        return {stem: t for stem, t in system.state_dict().items() if stem.startswith(CODEBOOKS)}, scores

    once(work, stage, lambda state: system.sender.codebooks.update(register_codebooks(state)), make)
