"""Catalogues as files: the shipped one, the operator's, and how the latter is renewed.

A file is read whole and checked whole before it takes another's place, which it does at once: a gateway that starts
meanwhile finds the old one or the new one.
"""

import contextlib
import datetime
import functools
import importlib.resources
import json
import os
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gateway.catalogue import litellm
from gateway.catalogue.book import Catalogue
from gateway.catalogue.cards import CardEntry, CardFile, entries_of

NAME = "models.json"

_BYTES_MAX = 64 * 1024 * 1024
# Several times as fast, where PyYAML was built with it. Deep nesting makes it crash, so others' files are not for it.
_SHIPPED_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


class CatalogueError(Exception):
    """A catalogue cannot be read or written; the message says which and why."""


@functools.cache
def shipped() -> tuple[CardEntry, ...]:
    """The cards that come with the package."""
    text = importlib.resources.files("gateway.catalogue").joinpath("cards.yaml").read_text(encoding="utf-8")
    return entries_of(yaml.load(text, Loader=_SHIPPED_LOADER))


def read(path: Path) -> tuple[CardEntry, ...]:
    """The cards of a file in our own form; raises ``CatalogueError``."""
    value = _parsed(path)
    try:
        return entries_of(value)
    except msgspec.ValidationError as error:
        raise CatalogueError(f"{path}: {error}") from None


def refresh(source: Path, path: Path) -> int:
    """Write what ``source`` says, in our form or LiteLLM's, to ``path``; returns how many entries it has."""
    value = _parsed(source)
    if litellm.is_litellm(value):
        try:
            known = Catalogue(shipped()).known
            entries = litellm.convert(value, known, source=f"LiteLLM, {source.name}", as_of=_changed_on(source))
        except ValueError as error:
            raise CatalogueError(f"{source}: {error}") from None
    else:
        entries = tuple(msgspec.structs.replace(it, source=it.source or source.name) for it in read(source))
    if not entries:
        raise CatalogueError(f"{source}: there are no models in it")
    text = msgspec.json.format(_ENCODER.encode(CardFile(cards=entries)), indent=1)
    try:
        entries_of(json.loads(text, parse_float=Decimal))  # what was converted is held to our own form too
    except msgspec.ValidationError as error:
        raise CatalogueError(f"{source}: {error}") from None
    _write(text + b"\n", path)
    return len(entries)


def _changed_on(path: Path) -> datetime.date:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, tz=datetime.UTC).date()


def _parsed(path: Path) -> Any:
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise CatalogueError(f"{path}: larger than {_BYTES_MAX} bytes")
        text = path.read_text(encoding="utf-8")
        # Not every JSON text is YAML, and a price in JSON keeps its digits.
        return json.loads(text, parse_float=Decimal) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise CatalogueError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CatalogueError(f"{path}: {error}") from None


def _write(text: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as temporary:
                temporary.write(text)
                temporary.flush()
                os.fsync(temporary.fileno())
            Path(name).chmod(0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise CatalogueError(f"{path}: {error.strerror}") from None
