"""Write docs/api.md from the docstrings of the public modules: `python scripts/write_api_docs.py [FILE]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import griffe
from griffe2md import default_config, render_object_docs

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    *("config.load", "config.schema", "core.errors", "data.example", "data.load"),
    *("backbone.lm", "backbone.anatomy", "backbone.context", "backbone.text_model"),
    *("encoder.base", "encoder.text", "encoder.registry", "encoder.backbone", "encoder.byte"),
    *("encoder.simple_st", "encoder.stq", "wire.message", "wire.frame", "wire.codecs.base"),
    *("wire.codebook", "reader.base", "reader.slots", "reader.adapter", "features.base"),
    *("model.sender", "model.receiver", "model.contexts", "model.asking", "model.system", "model.pretrained"),
    *("training.pipeline", "training.stages.slot_tuning", "training.stages.closed_form"),
    *("training.stages.end_to_end", "evaluation.evaluate", "serving.build_index", "serving.index"),
)
"""What others build on, in the order in which data flows."""
HEAD = """# API reference

Written by `python scripts/write_api_docs.py` from the docstrings; [python.md](python.md) is where to begin. Shapes
are in brackets, (batch, latents, d_z) the commonest; what a user can cause is raised as a `LatentWireError`.

"""


def render() -> str:
    """The whole page."""
    options = default_config | {
        "show_if_no_docstring": False,
        "summary": False,
        "heading_level": 2,
        "show_submodules": False,
        "show_signature_annotations": True,
        "show_root_members_full_path": False,
        "show_object_full_path": False,
        "members_order": "source",
    }
    loader = griffe.GriffeLoader(search_paths=[str(ROOT)])
    package = loader.load("latentwire")
    pages = [render_object_docs(package[name], options).strip() for name in MODULES]
    text = HEAD + "\n\n".join(pages) + "\n"
    return re.sub(r"\[([^]]+)\]\(#[^)]+\)", r"\1", text)  # base classes, by anchors that no heading here has


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "api.md"
    target.write_text(render(), encoding="utf-8")
