"""What every section is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


KEPT = "kept"
"""Key of the context in which a configuration is checked."""


def is_kept(info: ValidationInfo) -> bool:
    """Whether a configuration is one that a run or checkpoint has: it may hold what an earlier version let through, or
    what lost its effect when only some parts were taken over."""
    return bool(info.context and info.context[KEPT])


def flag(name: str | None) -> dict[str, Any]:
    """Name a field's command-line flag (without dashes); None means that it has no flag of its own."""
    return {"flag": name}


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
    # What stands before a field's name in its command-line flag, unless it has one of its own (`flag`).
    flag_prefix: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if field.json_schema_extra is None:
                field.json_schema_extra = flag(f"{cls.flag_prefix}{name}")

    @property
    def changed(self) -> list[str]:
        """Keys that are not at their defaults."""
        return [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.get_default()]

    def unused(self, key: str, why: str) -> str:
        """The error of a key that has no effect: why, and the default at which to leave it."""
        return f"{key}: {why}; leave it at {type(self).model_fields[key].get_default()!r}"


class Attending(Section):
    """A section whose `width` is that of all its attention heads together."""

    heads: PositiveInt
    width: PositiveInt

    @model_validator(mode="after")
    def _whole_heads(self) -> Attending:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is not a multiple of heads = {self.heads}")
        return self


def section_of(field: FieldInfo | None) -> type[BaseModel] | None:
    """The section that a field holds, None where it holds a value."""
    kind = field and field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option below a section, in order, by its dotted key."""
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from leaves(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
