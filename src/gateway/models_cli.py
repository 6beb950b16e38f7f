"""The commands about models: ``models list`` and ``models refresh``. They read files and need no running gateway.

What is listed is what a gateway with this configuration would go by: its own word, then the operator's catalogue, then
what ships. A catalogue takes effect when a gateway starts or reads its configuration again.
"""

import asyncio
import datetime
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from pydantic import ValidationError

from gateway.canonical.errors import RequestError
from gateway.catalogue.cards import CAPABILITIES, ModelCard
from gateway.catalogue.files import CatalogueError
from gateway.catalogue.files import refresh as refresh_catalogue
from gateway.config import Config, ConfigError, Environment
from gateway.config_file import load
from gateway.metering.prices import PriceSchedule
from gateway.providers.transport import Transport
from gateway.router import Router
from gateway.wiring import router, validate
from gateway.wiring_models import catalogue_path

models = typer.Typer(no_args_is_help=True, help="Models: what is known of them, and where from.")

_HEADINGS = ("name", "target", "context", "output", "capabilities", "$ per 1M: in, out, cached", "source")
_SHOWN = ("input", "output", "cache_read")
_PICOUSD_PER_USD_AND_MILLION = 1_000_000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list: a name, what it stands for, what is known of that. Prices are USD per million tokens."""

    name: str
    target: str
    context_tokens: int | None
    output_tokens_max: int | None
    capabilities: tuple[str, ...] | None
    refuses: tuple[str, ...]
    price: dict[str, Decimal] | None
    source: str
    as_of: datetime.date | None


@models.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="One model; without it, all that are offered by name.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also the models the catalogue knows by name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List models with their limits, capabilities and prices."""
    config = _load()
    try:
        validate(config)
        rows = asyncio.run(_rows(config, name, every=every))
    except ConfigError as error:
        _fail(str(error))
    except RequestError as error:
        _fail(error.message)
    if as_json:
        typer.echo(msgspec.json.Encoder(decimal_format="number").encode(rows))
    else:
        typer.echo(_table([_HEADINGS, *map(_cells, rows)]))


@models.command("refresh")
def refresh(
    file: Annotated[Path, typer.Argument(help="Cards in our form, or LiteLLM's model_prices_and_context_window.json.")],
) -> None:
    """Check a file and keep it as this gateway's catalogue, in place of the last one."""
    path = catalogue_path(_load())
    try:
        count = refresh_catalogue(file, path)
    except CatalogueError as error:
        _fail(str(error))
    typer.echo(f"{path}: {count} {'card' if count == 1 else 'cards'}. Gateways read it with their configuration.")


def _load() -> Config:
    try:
        return load(Environment())
    except (ConfigError, ValidationError) as error:
        _fail(str(error))


async def _rows(config: Config, name: str | None, *, every: bool) -> list[Row]:
    transport = Transport()
    try:
        built = router(config, transport)
        return list(_listed(built, [name] if name is not None else _names(built, config, every=every)))
    finally:
        await transport.aclose()


def _names(built: Router, config: Config, *, every: bool) -> list[str]:
    names = [entry.id for entry in built.models()]
    names += [name for name in config.models if "*" not in name and name.partition("/")[0] in built.providers]
    if every:
        names += [f"{it.name}/{model}" for it in built.providers.values() for model in built.known_models(it)]
    return sorted(set(names))


def _listed(built: Router, names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        for target in built.targets(name):
            card, price = built.card(target, name), None
            try:
                resolved = next(it for it in built.resolve(name) if it.name == target)
                price = resolved.terms.price
            except RequestError:  # without a price it is refused, and still worth a line
                price = None
            yield _row(name, target, card, price)


def _row(name: str, target: str, card: ModelCard, price: PriceSchedule | None) -> Row:
    return Row(
        name=name,
        target=target,
        context_tokens=card.context_tokens,
        output_tokens_max=card.output_tokens_max,
        capabilities=None if card.capabilities is None else tuple(it for it in CAPABILITIES if it in card.capabilities),
        refuses=tuple(sorted(card.refuses or ())),
        price=None if price is None else _usd(price),
        source=card.source,
        as_of=card.as_of,
    )


def _usd(schedule: PriceSchedule) -> dict[str, Decimal]:
    price = schedule.base
    known = {
        "input": price.input,
        "output": price.output,
        "cache_read": price.cache_read,
        "cache_write": price.cache_write,
        "reasoning": price.reasoning,
    }
    return {
        kind: Decimal(f"{(Decimal(rate) / _PICOUSD_PER_USD_AND_MILLION).normalize():f}")
        for kind, rate in known.items()
        if rate is not None
    }


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        "" if row.target == row.name else row.target,
        _number(row.context_tokens),
        _number(row.output_tokens_max),
        "?" if row.capabilities is None else " ".join(row.capabilities),
        "no price" if row.price is None else ", ".join(f"{row.price[it]:f}" for it in _SHOWN if it in row.price),
        f"{row.source} {row.as_of or ''}".strip() or "-",
    )


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
