"""What the latents keep of a text baseline, from two eval.json files. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentwire.core.errors import LatentWireError
from latentwire.core.intervals import with_interval
from latentwire.core.measures import baseline_for, baseline_of
from latentwire.report.results import checked, read_results


def compare(latent: Path, text: Path) -> list[dict[str, Any]]:
    """One row for each receiver of both files: F1, EM and NLL by latents and by text, and what the message saves.

    LatentWireError where the files measure different questions, have no receiver in common, or lack a mode.
    """
    a, b = read_results(latent), read_results(text)
    with checked(files_of(latent, text)):
        for key in ("dataset", "samples"):
            if a[key] != b[key]:
                raise LatentWireError(f"{text}: {key} is {b[key]!r}, but {a[key]!r} in {latent}")
        asked = [results["manifest"].get("data") for results in (a, b)]  # older files do not say
        if None not in asked and asked[0] != asked[1]:
            raise LatentWireError(f"{text}: other questions were asked than in {latent}")
        shared = [name for name in a["receivers"] if name in b["receivers"]]
        if not shared:
            raise LatentWireError(f"{text}: has none of the receivers of {latent} ({', '.join(a['receivers'])})")
        return [_row(name, a["receivers"][name], b["receivers"][name], latent, text) for name in shared]


def files_of(latent: Path, text: Path) -> str:
    """How errors name the files of a comparison."""
    return str(latent) if latent == text else f"{latent} or {text}"


def _row(name: str, a: dict[str, Any], b: dict[str, Any], latent: Path, text: Path) -> dict[str, Any]:
    ours = a["latent"]
    if ours is None:
        raise LatentWireError(f"{latent}: receiver {name!r} was not measured in mode 'latent'")
    mode = baseline_of(ours, b)
    if mode is None:
        raise LatentWireError(f"{text}: receiver {name!r} was not measured in mode {baseline_for(ours)!r}")
    theirs = b[mode]
    return {
        "receiver": name,
        "baseline": mode,
        "latent": {key: ours[key] for key in ("f1", "f1_ci", "em", "nll_per_token")},
        "text": {key: theirs[key] for key in ("f1", "f1_ci", "em", "nll_per_token")},
        "f1_kept": ours["f1"] / theirs["f1"] if theirs["f1"] else None,
        "compression": a["compression"],
        "wire_bytes": a["bytes"]["wire"],
        "utf8_bytes": a["bytes"]["utf8"],
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for readers."""
    lines = [
        "| receiver | baseline | F1 text [95 %] | F1 latent [95 %] | kept | EM text | EM latent | compression "
        "| wire bytes | text bytes |",
        f"|{'---|' * 10}",
    ]
    for row in rows:
        kept = "" if row["f1_kept"] is None else f"{row['f1_kept']:.0%}"
        cells = [
            row["receiver"],
            row["baseline"],
            *(with_interval(m["f1"], m["f1_ci"]) for m in (row["text"], row["latent"])),
            kept,
            *(f"{m['em']:.3f}" for m in (row["text"], row["latent"])),
            f"{row['compression']:.2f}x",
            f"{row['wire_bytes']:.0f}",
            f"{row['utf8_bytes']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
