"""Reading the configuration's file: YAML with ``${NAME}`` from the environment, checked as a whole.

A mistake is told with the line it is on and what would be right, all of them at once.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from gateway.config import Config, ConfigError, Environment

Check: TypeAlias = Callable[[Config], None]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# What pydantic puts into a path that is no part of the file: of a key, and which of two forms was meant.
_MARKS = ("[key]", "[word]", "[tiers]")


def load(environment: Environment, check: Check | None = None) -> Config:
    """The configuration of this environment; raises ``ConfigError``. ``check`` may raise another, without a line."""
    path = environment.config
    if path is None:
        path = Path("gateway.yaml")
        if not path.exists():
            return Config()
    try:
        return parse(path.read_text(encoding="utf-8"), str(path), check)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None


def parse(text: str, name: str = "gateway.yaml", check: Check | None = None) -> Config:
    """A configuration from YAML text; raises ``ConfigError`` with the line of every mistake."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        raise ConfigError(f"{name}:{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not a text file: {error}") from None
    except ValueError as error:  # a date that does not exist
        raise ConfigError(f"{name}: {error}") from None
    if problems := [f"{name}:{line}: {text}" for line, text in _text_problems(tree)]:
        raise ConfigError("\n".join(problems))
    try:
        config = Config.model_validate(_substitute(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(name, tree, problem) for problem in error.errors())) from None
    if problems := [f"{name}:{_line(tree, where)}: {text}" for where, text in _alias_problems(config)]:
        raise ConfigError("\n".join(problems))
    try:
        if check is not None:
            check(config)
    except ConfigError as error:
        raise ConfigError(f"{name}:{_line_named(tree, str(error))}: {error}") from None
    return config


def _text_problems(node: yaml.Node | None, above: tuple[yaml.Node, ...] = ()) -> list[tuple[int, str]]:
    """What YAML allows and we do not, with its line: a variable that is not set, a key twice, a section in itself."""
    if node is None:
        return []
    line = node.start_mark.line + 1
    if node in above:
        return [(line, "this section contains itself")]
    if isinstance(node, yaml.ScalarNode):
        names = _VARIABLE.findall(node.value)
        return [(line, f"the environment has no {name}") for name in names if name not in os.environ]
    problems: list[tuple[int, str]] = []
    inner = node.value
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        twice = [key for number, (key, _) in enumerate(node.value) if key.value in keys[:number]]
        problems = [(key.start_mark.line + 1, f"the key {key.value} is here twice") for key in twice]
        inner = [value for _, value in node.value]
    return problems + [found for child in inner for found in _text_problems(child, (*above, node))]


def _substitute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_substitute(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda match: os.environ[match.group(1)], value)


def _alias_problems(config: Config) -> list[tuple[list[Any], str]]:
    """What is wrong with models, and where; checked here since pydantic would not tell the line."""
    problems: list[tuple[list[Any], str]] = []
    for name, model in config.models.items():
        if not model.targets and "/" not in name:
            problems.append((["models", name], f"models.{name} needs targets, e.g. targets: [openai/gpt-4o-mini]"))
        for number, target in enumerate(model.targets):
            if "/" not in target.model:
                where = ["models", name, "targets", number]
                problems.append((where, f"models.{name}: the target {target.model!r} must be written provider/model"))
    return problems


def _problem(name: str, tree: yaml.Node | None, problem: Any) -> str:
    where = [part for part in problem["loc"] if part not in _MARKS]
    line = _line(tree, where)
    path = ".".join(map(str, where))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"there is no such key here{_nearest(where)}"
    return f"{name}:{line}: {path + ': ' if path else ''}{message}"


def _line(node: yaml.Node | None, where: list[Any]) -> int:
    if node is None:
        return 1
    line = node.start_mark.line + 1
    for part in where:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _line_named(node: yaml.Node | None, text: str) -> int:
    """The line of the key that a message begins with, such as ``tiers.gold.limits.0: …``; keys may have dots."""
    if node is None:
        return 1
    path, line = text.partition(": ")[0], node.start_mark.line + 1
    while path:
        pairs = _children(node)
        found = next(((key, value, at) for key, value, at in pairs if f"{path}.".startswith(f"{key}.")), None)
        if found is None:
            return line
        key, node, line = found
        path = path[len(key) + 1 :]
    return line


def _children(node: yaml.Node) -> list[tuple[str, yaml.Node, int]]:
    """What stands within a section or a list: the key or number, the value, the line."""
    if isinstance(node, yaml.MappingNode):
        return [(key.value, value, key.start_mark.line + 1) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(str(number), value, value.start_mark.line + 1) for number, value in enumerate(node.value)]
    return []


def _nearest(where: list[Any]) -> str:
    annotation: Any = Config
    for part in where[:-1]:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif isinstance(part, int):
            annotation = get_args(annotation)[0]
        else:
            field = _section(annotation).model_fields.get(part)
            annotation = field.annotation if field is not None else None
    names = ", ".join(_section(annotation).model_fields)
    return f"; there are {names}" if names else ""


def _section(annotation: Any) -> type[BaseModel]:
    """The section an annotation stands for, ``X | None`` included; an empty one where it stands for none."""
    candidates = (annotation, *get_args(annotation))
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), BaseModel)
