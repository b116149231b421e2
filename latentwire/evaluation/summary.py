"""From single answers to the measures of eval.json. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from latentwire.core.intervals import estimate
from latentwire.core.metrics import exact_match, f1_score, normalize_answer


class ScoredAnswer(Protocol):
    prediction: str
    f1: float
    em: float
    nll: float
    tokens: int
    first_correct: bool


def measure(answers: Sequence[ScoredAnswer], clusters: Sequence[int], resamples: int) -> dict[str, Any]:
    """F1, EM, first-token accuracy, and NLL in nats per gold answer token, each with its 95 % interval."""
    nll, tokens, first = ([float(getattr(a, key)) for a in answers] for key in ("nll", "tokens", "first_correct"))
    return {
        **_f1_and_em([a.f1 for a in answers], [a.em for a in answers], clusters, resamples),
        **estimate("first_token_acc", first, clusters, resamples=resamples),
        **estimate("nll_per_token", nll, clusters, tokens, resamples=resamples),
        "latency_s": None,
    }


def _f1_and_em(
    f1: Sequence[float], em: Sequence[float], clusters: Sequence[int], resamples: int
) -> dict[str, float | list[float]]:
    """Means of one value a question, each with its interval."""
    return estimate("f1", f1, clusters, resamples=resamples) | estimate("em", em, clusters, resamples=resamples)


def kept(
    latent: Sequence[ScoredAnswer], text: Sequence[ScoredAnswer], clusters: Sequence[int], resamples: int
) -> dict[str, Any]:
    """What answers from latents keep of those from the text to the same questions: ratios of F1, EM and NLL a token.

    Each with its 95 % interval; None where the text's is nothing.
    """
    out: dict[str, Any] = {}
    for key, value in {"f1": "f1", "em": "em", "nll_per_token": "nll"}.items():
        ours, theirs = ([getattr(answer, value) for answer in answers] for answers in (latent, text))
        nothing = {key: None, f"{key}_ci": None}
        out |= estimate(key, ours, clusters, theirs, resamples=resamples) if sum(theirs) > 0 else nothing
    return out


def gained(ours: Sequence[float], theirs: Sequence[float], clusters: Sequence[int], resamples: int) -> dict[str, Any]:
    """The mean difference of one value a question, with its 95 % interval."""
    return estimate("f1", [a - b for a, b in zip(ours, theirs, strict=True)], clusters, resamples=resamples)


def joint_measures(
    joint: Sequence[str],
    golds: Sequence[Sequence[str]],
    own: dict[str, list[str]],
    clusters: Sequence[int],
    resamples: int,
) -> dict[str, Any]:
    """Rescored answers of all receivers together, and what they have `gained` over the better receiver's own; agreement
    (all answers equal after normalisation) and oracle."""
    f1 = [f1_score(p, g) for p, g in zip(joint, golds, strict=True)]
    em = [exact_match(p, g) for p, g in zip(joint, golds, strict=True)]
    each = list(zip(*own.values(), strict=True))
    best = max(([f1_score(p, g) for p, g in zip(answers, golds, strict=True)] for answers in own.values()), key=sum)
    return {
        **_f1_and_em(f1, em, clusters, resamples),
        "gained": gained(f1, best, clusters, resamples),
        "agreement": statistics.fmean(len({normalize_answer(p) for p in row}) == 1 for row in each),
        "oracle_f1": statistics.fmean(max(f1_score(p, g) for p in row) for row, g in zip(each, golds, strict=True)),
        "oracle_em": statistics.fmean(max(exact_match(p, g) for p in row) for row, g in zip(each, golds, strict=True)),
    }


def mean_over_receivers(
    answers: Mapping[str, Mapping[str, Sequence[ScoredAnswer]]],
    receivers: Mapping[str, Mapping[str, Any]],
    mode: str,
    clusters: Sequence[int],
    resamples: int,
) -> dict[str, Any] | None:
    """Means of a mode's measures over receivers; intervals are those of each question's mean over receivers."""
    measures = [r[mode] for r in receivers.values()]
    if any(m is None for m in measures):
        return None
    rows = list(zip(*(modes[mode] for modes in answers.values()), strict=True))
    f1 = [statistics.fmean(a.f1 for a in row) for row in rows]
    em = [statistics.fmean(a.em for a in row) for row in rows]
    times = [m["latency_s"] for m in measures]
    return {
        **_f1_and_em(f1, em, clusters, resamples),
        **{key: statistics.fmean(m[key] for m in measures) for key in ("first_token_acc", "nll_per_token")},
        "latency_s": {k: statistics.fmean(t[k] for t in times) for k in times[0]} if all(times) else None,
        "tuned": all(m["tuned"] for m in measures),
    }
