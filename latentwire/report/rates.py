"""The plot of F1 against bytes, made of the rows that `latentwire rates` writes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentwire.core.measures import SIZE_COLUMNS, SIZES
from latentwire.report.plots import around, as_png


def plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG: F1 with its 95 % interval over the mean bytes of a message, each codec a line through its settings; what
    the text takes in other forms is marked."""
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    receivers = list(dict.fromkeys(row["receiver"] for row in rows))
    kinds = list(dict.fromkeys(row["codec"].partition(":")[0] for row in rows))
    figure = Figure(figsize=(9, 1 + 3.2 * len(receivers)), layout="constrained")
    every = figure.subplots(len(receivers), 1, sharex=True, squeeze=False)[:, 0]
    for axes, receiver in zip(every, receivers, strict=True):
        own = [row for row in rows if row["receiver"] == receiver]
        for kind in kinds:
            line = sorted((r for r in own if r["codec"].partition(":")[0] == kind), key=lambda r: r["bytes"])
            size, f1 = ([r[key] for r in line] for key in ("bytes", "f1"))
            axes.errorbar(size, f1, yerr=around(line, "f1"), fmt="o-", capsize=3, label=kind)
        for kind, label in SIZES.items():
            if taken := own[0].get(SIZE_COLUMNS[kind]):
                axes.axvline(taken, color="grey", linestyle=":", linewidth=1)
                above = axes.get_xaxis_transform()  # where no small message has its answers
                axes.text(taken, 0.98, label, rotation=90, fontsize=7, va="top", ha="right", transform=above)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"F1, {receiver}")
        axes.grid(alpha=0.3)
    every[-1].set_xlabel("bytes a message, mean over passages")
    every[0].legend(ncols=min(4, len(kinds)), fontsize=8)
    return as_png(figure)
