"""The model card of a checkpoint that is passed on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentwire.backbone.aliases import ALIASES, hub_id
from latentwire.config.layout import deal_out
from latentwire.config.sections.inputs import ModelConfig
from latentwire.core.intervals import with_interval
from latentwire.core.measures import ADAPTER_OF, kept_in_words, mode_label
from latentwire.core.names import CODEBOOKS
from latentwire.data.hub import SOURCES

DATA_LICENCES = {
    "squad": "SQuAD 1.1 (Rajpurkar et al. 2016), CC BY-SA 4.0",
    "squad_v2": "SQuAD 2.0 (Rajpurkar et al. 2018), CC BY-SA 4.0",
    "hotpot": "HotpotQA (Yang et al. 2018), CC BY-SA 4.0",
    "facts": "invented facts, made by latentwire.data.facts",
}
COLUMNS = {"f1": "F1 [95 %]", "em": "EM", "first_token_acc": "first token", "nll_per_token": "NLL/token"}
SEVERAL_RUNS = (
    "Commands of the training, in their order. `checkpoint.json` names the commit of each; files of `configs/` and "
    "`checkpoints/` in it are those of that commit:"
)


def model_card(info: dict[str, Any], results: dict[str, Any] | None) -> str:
    """Markdown from a checkpoint's index and, where there is one, its eval.json, behind the head that the Hub reads."""
    config, files = info["config"], info["files"]
    encoder, data, model = config["encoder"], config["data"], config["model"]
    receivers = ModelConfig.model_validate(model).chosen
    sender, size = _encoder(encoder, receivers), sum(file["bytes"] for file in files.values()) / 1e6
    lines = [
        *_metadata([encoder["model"], *filter(None, [encoder.get("companion")]), *receivers.values()], data),
        "# LatentWire checkpoint",
        "",
        f"A sender on `{encoder['model']}` ({', '.join([sender, *_features(config, of_sender=True)])}) and "
        f"readers ({', '.join(_features(config, of_sender=False)) or 'vectors at the input'}) for:",
        "",
        *(f"- `{name}`: {_model(value)}{_when(name, config['curriculum'])}" for name, value in receivers.items()),
        "",
        f"{len(files)} files, {size:.1f} MB, without the language models themselves. `checkpoint.json` holds every "
        "file's SHA-256, the whole configuration, and the versions and commit of the training; `training.jsonl` is "
        "its log.",
        *_codecs(files),
        "",
        "## Use",
        "",
        "With LatentWire installed (in its checkout: `pip install -e .`):",
        "",
        "    from latentwire import Receiver, Sender",
        "",
        '    checkpoint = "ORG/NAME"  # this repository, or the folder where it lies',
        "    message = Sender.from_pretrained(checkpoint).encode(text)",
        f'    reader = Receiver.from_pretrained(checkpoint, "{next(iter(receivers))}")',
        "    print(reader.answer(message, question).text)",
        "",
        "Each end fetches its own files alone. On a command line: `latentwire ask notes.txt QUESTION --ckpt ORG/NAME`.",
        "",
        "## Training",
        "",
        f"Training data: {_training_data(data, info.get('data_licence'))}.",
        "",
        SEVERAL_RUNS if info.get("earlier") else "Training command:",
        "",
        *(f"    {shlex.join(made['command'])}" for made in [*info.get("earlier", []), info["manifest"]]),
        "",
    ]
    return "\n".join(lines + (_results(results) if results else []))


def _codecs(files: Iterable[str]) -> list[str]:
    learned = ", ".join(f"`{Path(name).stem}`" for name in sorted(files) if name.startswith(CODEBOOKS))
    return ["", f"Learned codecs, as in `encode(text, codec)`: {learned}."] if learned else []


def _metadata(models: list[str], data: dict[str, Any]) -> list[str]:
    """The head that the Hub reads. It is YAML, of which JSON is a part."""
    names = dict.fromkeys(map(hub_id, models))
    head = {
        "library_name": "latentwire",
        "tags": ["context-compression"],
        "base_model": [name for name in names if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)],
        "datasets": [] if data["data_path"] or data["dataset"] not in SOURCES else [SOURCES[data["dataset"]][0]],
    }
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value), "---", ""]


def _when(name: str, curriculum: dict[str, Any]) -> str:
    return ", trained last and alone, the sender fixed" if name in (curriculum.get("train_only") or []) else ""


def _features(config: dict[str, Any], *, of_sender: bool) -> list[str]:
    on = (name.removeprefix("use_") for name, value in config["features"].items() if value)
    return [f"`{name}`" for name in on if (name in ("latent_refiner", "sender_lora")) == of_sender]


def _encoder(encoder: dict[str, Any], receivers: Iterable[str]) -> str:
    kind, private = encoder.get("type", "backbone"), encoder.get("latent_private_len") or 0
    parts = [f"windows of {encoder['window']} tokens{_chosen(encoder)}", f"d_z {encoder['d_z']}"]
    shared, fixed = encoder.get("latent_shared_len"), kind != "backbone"
    if made := encoder["latent_len"] or deal_out(None, shared, private, receivers, fixed=fixed).total:
        parts[0] = f"{made} latents"
    if encoder.get("companion"):
        parts[-1] += f", {encoder['companion_d_z']} of them by `{encoder['companion']}` {encoder['companion_layers']}"
    if private:
        parts.append(f"{private} latents private to each receiver")
    return ", ".join([*parts, f"hidden states {encoder['layers']}"] if kind == "backbone" else [f"type {kind}", *parts])


def _chosen(encoder: dict[str, Any]) -> str:
    if not encoder.get("keep"):
        return ""
    asked = "most likely to be asked about and " if encoder.get("keep_by") == "salience" else ""
    across = " on average, chosen from the whole text" if encoder.get("keep_from") == "text" else ""
    return f", of which the {encoder['keep']} {asked}hardest to predict are read{across}"


def _model(name: str) -> str:
    alias = ALIASES.get(name)
    return f"{alias.hub_id}, {alias.licence}" if alias else name


def _training_data(data: dict[str, Any], licence: str | None) -> str:
    """What it was trained on; of files, only whoever exports the checkpoint can say what they are."""
    paths = data["data_path"] or []
    files = ([paths] if isinstance(paths, str) else list(paths)) + [p for p in (data["text_path"],) if p]
    known = [] if data["data_path"] else [DATA_LICENCES[data["dataset"]]]
    return "; ".join([*known, *([f"{', '.join(files)}: {licence or 'licences not stated'}"] if files else [])])


def _results(results: dict[str, Any]) -> list[str]:
    made = results["manifest"]
    commit = made["git"]["commit"][:7] if made["git"] else "unknown"
    lines = [
        "## Results",
        "",
        f"{results['samples']} questions on {results['passages']} held-out passages ({results['dataset']}), read "
        f"through the message's bytes; commit {commit}, {made['cpu']}. "
        "`eval.json` has the rest.",
        "",
        f"| receiver | reads | {' | '.join(COLUMNS.values())} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    for name, receiver in results["receivers"].items():
        for mode in ADAPTER_OF:
            m = receiver.get(mode)
            if m is not None:
                f1 = with_interval(m["f1"], m["f1_ci"])
                rest = (f"{m[key]:.3f}" for key in list(COLUMNS)[1:])
                lines.append(f"| {name} | {mode_label(mode, m)} | {f1} | {' | '.join(rest)} |")
    for name, receiver in results["receivers"].items():
        b = receiver["bytes"]
        lines += [
            "",
            f"{name}: {receiver['compression']:.2f}x fewer positions; {b['wire']:.0f} bytes a message "
            f"(UTF-8 {b['utf8']:.0f}, zstd {b['zstd']:.0f}, token ids {b['packed_ids']:.0f}).",
        ]
        if receiver.get("kept"):
            lines += ["", f"{name}: {kept_in_words(receiver['kept'])}."]
    return [*lines, ""]
