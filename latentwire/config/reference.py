"""The reference of all options, made from the schema: `python -m latentwire.config.reference > docs/config.md`."""

from __future__ import annotations

from latentwire.config.flags import default_of, options, type_name
from latentwire.config.schema import Config
from latentwire.config.sections.base import section_of

HEAD = """# Configuration

A configuration is a JSON file with these sections; every key may be left out. `"extends": "other.json"` takes over
another file first. `--override section.key=value` changes a key, and a flag on the command line wins over both.
An unknown key is an error. This page is made from the schema by `python -m latentwire.config.reference`.
"""


def markdown() -> str:
    """One table a section: key, flag, type, default, meaning."""
    parts = [HEAD]
    section = ""
    for option in options():
        name, key = option.dotted.split(".", 1)
        if name != section:
            section = name
            parts.append(
                f"\n## {name}\n\n{_doc(name)}\n\n| key | flag | type | default | meaning |\n|---|---|---|---|---|\n"
            )
        flag = f"`--{option.flag}`" if option.flag else ""
        cells = [
            f"`{key}`",
            flag,
            type_name(option.field),
            f"`{default_of(option.field)}`",
            option.field.description or "",
        ]
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _doc(section: str) -> str:
    kind = section_of(Config.model_fields[section])
    return ((kind and kind.__doc__) or "").strip()


if __name__ == "__main__":
    print(markdown(), end="")
