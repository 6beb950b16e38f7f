"""The reference of every configuration key, made from where each is defined."""

from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.config import Config, Environment


def reference() -> str:
    """Markdown: the environment variables, then the file's sections in the order of the file."""
    lines = ["# Configuration reference", "", "Made by `gateway config reference`; do not edit.", ""]
    lines += ["## Environment", "", "| variable | default | |", "|---|---|---|"]
    for name, field in Environment.model_fields.items():
        lines.append(f"| `GATEWAY_{name.upper()}` | {_default(field)} | {field.description} |")
    lines += ["", "## gateway.yaml", "", "Any value may be `${ENV_NAME}`.", ""]
    sections: dict[type[BaseModel], str] = {Config: "The file"}
    queue: list[type[BaseModel]] = [Config]
    for section in queue:
        lines += [f"### {sections[section]}", "", section.__doc__ or "", "", "| key | default | |", "|---|---|---|"]
        for name, field in section.model_fields.items():
            lines.append(f"| `{name}` | {_default(field)} | {field.description} |")
            path = name if section is Config else f"{sections[section].strip('`')}.{name}"
            for inner in _sections(field.annotation):
                if inner not in sections:
                    is_named = "dict" in str(field.annotation)
                    sections[inner] = f"`{path}.NAME`" if is_named else f"`{path}`"
                    queue.append(inner)
        lines.append("")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if isinstance(value, BaseModel) or value is None or value == {} or value == ():
        return ""
    return f"`{', '.join(map(str, value))}`" if isinstance(value, tuple) else f"`{value}`"


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
