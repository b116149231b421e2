"""Write docs/api.md from the docstrings of the public modules: `python scripts/write_api_docs.py [FILE]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import griffe
from griffe2md import default_config, render_object_docs

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    *("core", "config", "data", "backbone", "encoder", "wire", "reader", "features", "losses", "model"),
    *("diagnostics", "checkpoint", "training", "evaluation", "rivals", "report", "serving", "cli"),
)
"""Folders in the order in which data flows."""
HEAD = """# API reference

Written by `python scripts/write_api_docs.py` from the docstrings; [python.md](python.md) is where to begin. Shapes
are in brackets, (batch, latents, d_z) the commonest; what a user can cause is raised as a `LatentWireError`.

"""


def modules() -> list[tuple[str, bool]]:
    """Every module of the public folders: dotted name without the package's, and whether it is a folder."""
    found = []
    for folder in ORDER:
        for path in sorted((ROOT / "latentwire" / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            folds = parts[-1] == "__init__"
            found.append((".".join(parts[1:-1] if folds else parts[1:]), folds))
    return found


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
    pages = [
        # What a folder hands on is described where it is defined.
        render_object_docs(package[name], options | ({"members": False} if folds else {})).strip()
        for name, folds in modules()
    ]
    text = HEAD + "\n\n".join(page for page in pages if page) + "\n"
    return re.sub(r"\[([^]]+)\]\(#[^)]+\)", r"\1", text)  # base classes, by anchors that no heading here has


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "api.md"
    target.write_text(render(), encoding="utf-8")
