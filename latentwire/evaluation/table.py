"""The table that an evaluation prints."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from latentwire.core.intervals import with_interval
from latentwire.core.measures import ADAPTER_OF, RIVAL_MODES, SIZES, kept_in_words, mode_label


def wide_console() -> Console:
    """The terminal, or 130 columns where output goes elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 130)


def print_table(results: dict[str, Any]) -> None:
    """Print one table of all receivers and modes."""
    console = wide_console()
    title = f"{results['samples']} questions on {results['passages']} passages ({results['dataset']})"
    table = Table(title=title)
    for column in (
        "receiver",
        "reads",
        "F1 [95 %]",
        "EM",
        "first token",
        "NLL/token",
        "positions",
        "bytes",
        "answer s",
    ):
        table.add_column(column, justify="left" if column in ("receiver", "reads") else "right", no_wrap=True)
    for name, receiver in results["receivers"].items():
        for mode in ADAPTER_OF:
            m = receiver.get(mode)
            if m is None:
                continue
            where = "latent" if mode == "latent" else "text"
            shown = mode in ("text", "text_tuned", "latent", "embedding_replay")
            taken = m["positions"] if mode in RIVAL_MODES else receiver["positions"][where]
            table.add_row(
                name,
                mode_label(mode, m),
                with_interval(m["f1"], m["f1_ci"]),
                f"{m['em']:.3f}",
                f"{m['first_token_acc']:.3f}",
                f"{m['nll_per_token']:.2f}",
                f"{taken:.0f}" if shown or mode in RIVAL_MODES else "",
                f"{receiver['bytes']['wire' if mode == 'latent' else 'utf8']:.0f}" if shown else "",
                f"{m['latency_s']['answer']:.2f}" if m["latency_s"] else "",
            )
        table.add_section()
    console.print(table)
    for name, receiver in results["receivers"].items():
        console.print(
            f"{name}: {receiver['compression']:.2f}x fewer positions; wire {receiver['bytes']['wire']:.0f} bytes, "
            f"{receiver['bits_per_latent']:.0f} bits a latent: {', '.join(_ratios(receiver))}"
        )
        if receiver["kept"]:
            console.print(f"{name}: {kept_in_words(receiver['kept'])}{_gain(receiver['gained'])}")
    if results["joint"]:
        j, few = results["joint"], len(results["receivers"]) == 2
        console.print(
            f"{'both' if few else 'all'} together: F1 {with_interval(j['f1'], j['f1_ci'])}, EM {j['em']:.3f}; "
            f"{with_interval(j['gained']['f1'], j['gained']['f1_ci'])} above the better one; "
            f"they agree on {j['agreement']:.0%}, the {'better of both' if few else 'best of them'} has F1 "
            f"{j['oracle_f1']:.3f}"
        )


def _gain(over: dict[str, Any] | None) -> str:
    return "" if over is None else f"; F1 {with_interval(over['f1'], over['f1_ci'])} above {over['over']}"


def _ratios(receiver: dict[str, Any]) -> Iterator[str]:
    for kind, label in SIZES.items():
        if (size := receiver["bytes"][kind]) is not None:
            yield f"{receiver['byte_ratios'][kind]:.2f}x {label} ({size:.0f})"
