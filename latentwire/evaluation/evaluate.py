"""One evaluation: answers, and what is measured of them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from latentwire.backbone.devices import check_devices
from latentwire.backbone.lm import LanguageModel
from latentwire.config import Config
from latentwire.config.sections.running import EvaluationConfig
from latentwire.core.errors import DataError
from latentwire.core.manifest import run_manifest
from latentwire.core.measures import baseline_of
from latentwire.data.example import Passage, data_fingerprint
from latentwire.evaluation.answering import Answer, Answers, answer_all, encode_items
from latentwire.evaluation.attention import attention_on_latents
from latentwire.evaluation.efficiency import (
    bits_per_dimension,
    bits_per_latent,
    byte_ratios,
    latency,
    message_bytes,
    positions,
)
from latentwire.evaluation.lossless import lm_bytes
from latentwire.evaluation.modes import EVERY_MODE, MODES, RIVALS, modes_for
from latentwire.evaluation.summary import gained, joint_measures, kept, mean_over_receivers, measure
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.rivals import versions_of

SCHEMA = 1


def evaluate(
    system: LatentWire,
    passages: Sequence[Passage],
    config: Config,
    *,
    command: Sequence[str] = (),
    quiet: bool = False,
) -> tuple[dict[str, Any], Answers]:
    """Evaluate a system on passages; returns what eval.json holds, and all single answers."""
    if not passages:
        raise DataError("evaluation: no question to evaluate on")
    own = config.evaluation
    versions = versions_of(own.rivals)
    items = encode_items(system, passages, own.codec)
    lossless = lossless_limits(config, passages) if own.lm_bytes else None
    answers = answer_all(
        system,
        items,
        modes_for,
        batch_size=own.batch_size,
        max_new_tokens=own.max_new_tokens,
        candidates=own.candidates,
        report=_silent if quiet else _progress,
    )
    receivers = {
        name: _measured(receiver, system, answers, own, lossless) for name, receiver in system.receivers.items()
    }
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "manifest": run_manifest(config.model_dump(mode="json"), command),
        "dataset": config.data.dataset,
        "samples": len(answers.questions),
        "passages": len(items),
        "receivers": receivers,
        "joint": None,
        **{
            mode: mean_over_receivers(answers.by_mode, receivers, mode, answers.clusters, own.bootstrap)
            for mode in ("text", "text_tuned", "latent", "token_budget", *RIVALS)
            if mode in MODES or all(mode in measured for measured in receivers.values())
        },
    }
    results["manifest"]["versions"] |= versions
    results["manifest"]["data"] = data_fingerprint(passages)
    if answers.joint:
        own_answers = {n: [a.prediction for a in modes["latent"]] for n, modes in answers.by_mode.items()}
        golds = [q.answers for q in answers.questions]
        results["joint"] = joint_measures(answers.joint, golds, own_answers, answers.clusters, own.bootstrap)
    return results, answers


def _measured(
    receiver: Receiver, system: LatentWire, answers: Answers, own: EvaluationConfig, lossless: Sequence[int] | None
) -> dict[str, Any]:
    """What eval.json holds of one receiver."""
    items, by_mode = answers.items, answers.by_mode[receiver.name]
    for i, answer in enumerate(by_mode.get("latent", [])[: own.attention_examples]):
        item, question = items[answers.clusters[i]], answers.questions[i]
        answer.attention = attention_on_latents(receiver, item, question, answer.prediction)
    measured = {
        mode: measure(rows, answers.clusters, own.bootstrap) | {"tuned": EVERY_MODE[mode].adapter in receiver.adapters}
        for mode, rows in by_mode.items()
    }
    for mode in RIVALS.keys() & measured.keys():
        measured[mode]["positions"] = statistics.fmean(a.positions for a in by_mode[mode])
    for mode in ("text", "text_tuned", "latent"):
        if mode in measured and own.latency_samples:
            some = items[: own.latency_samples]
            times = latency(system, receiver, MODES[mode], some, own)
            measured[mode]["latency_s"] = times
    taken, means = positions(receiver, items), message_bytes(receiver, items, lossless)
    return {
        **{mode: measured.get(mode) for mode in MODES},
        **{mode: measured[mode] for mode in RIVALS if mode in measured},
        **_beside(by_mode, measured, answers.clusters, own.bootstrap),
        "positions": taken,
        "compression": taken["text"] / taken["latent"],
        "bytes": means,
        "byte_ratios": byte_ratios(means),
        "bits_per_dimension": bits_per_dimension(items),
        "bits_per_latent": bits_per_latent(items),
    }


def _beside(
    answers: Mapping[str, Sequence[Answer]], measured: Mapping[str, Any], clusters: Sequence[int], resamples: int
) -> dict[str, Any]:
    """What latents keep of the text, and what they gain over as many tokens of it: read with a LoRA tuned on that where
    they have one too, without one where they have none; None where these were not measured alike."""
    out: dict[str, Any] = {"kept": None, "gained": None}
    if "latent" not in answers:
        return out
    latent = answers["latent"]
    if text := baseline_of(measured["latent"], measured):
        out["kept"] = {"of": text} | kept(latent, answers[text], clusters, resamples)
    if "token_budget" in answers and measured["token_budget"]["tuned"] == measured["latent"]["tuned"]:
        f1, theirs = ([answer.f1 for answer in rows] for rows in (latent, answers["token_budget"]))
        out["gained"] = {"over": "token_budget"} | gained(f1, theirs, clusters, resamples)
    return out


def lossless_limits(config: Config, passages: Sequence[Passage]) -> list[int]:
    """The lossless limit of each passage. The system's own sender may have only the layers that it needs."""
    device = check_devices(config)
    whole = LanguageModel.load(config.encoder.model, dtype=config.model.dtype, device=device)
    return lm_bytes(whole, [passage.context for passage in passages])


def _silent(what: str, done: int, total: int) -> None:
    pass


def _progress(what: str, done: int, total: int) -> None:
    """One line that is rewritten on a terminal; elsewhere a line for each finished mode."""
    if sys.stderr.isatty():
        print(f"\r  {what}: {done}/{total} questions" + " " * 12, end="\n" if done >= total else "", file=sys.stderr)
    elif done >= total:
        print(f"  {what}: {total} questions", file=sys.stderr, flush=True)
