"""The ``gateway`` command: run it, look after accounts, check a configuration, try a chat.

Everything but ``serve``, ``config`` and what ``audit_cli`` adds talks to a running gateway over HTTP, as any other
program would.
"""

import json
import os
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import msgspec
import typer
from pydantic import ValidationError

from gateway import api_reference, audit_cli, config_reference, models_cli
from gateway.app import START_UP_ERRORS, Gateway
from gateway.config import Config, ConfigError, Environment
from gateway.config_file import load
from gateway.experiments import Row, report
from gateway.metering.prices import microusd_of
from gateway.server import serve as run_server
from gateway.telemetry import configure_logs
from gateway.wiring import validate
from gateway.worker import PortTaken, run_worker
from gateway.workers import supervise

app = typer.Typer(no_args_is_help=True, add_completion=False, help="A streaming gateway for LLMs.")
accounts = typer.Typer(no_args_is_help=True, help="Accounts and their balances.")
keys = typer.Typer(no_args_is_help=True, help="API keys.")
credits = typer.Typer(no_args_is_help=True, help="Credit.")
config_app = typer.Typer(no_args_is_help=True, help="The configuration file.")
api_app = typer.Typer(no_args_is_help=True, help="The HTTP API.")
app.add_typer(accounts, name="accounts")
app.add_typer(keys, name="keys")
app.add_typer(credits, name="credits")
app.add_typer(config_app, name="config")
app.add_typer(api_app, name="api")
audit_cli.register(app, credits)
app.add_typer(models_cli.models, name="models")

_TIMEOUT_S = 10.0


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def serve(
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that share the port; GATEWAY_WORKERS, or 1, without.")
    ] = None,
) -> None:
    """Start the gateway. GATEWAY_* variables and gateway.yaml say how."""
    environment, config = _load()
    configure_logs(config.log.level)
    count = workers or environment.workers
    if count > 1:
        raise typer.Exit(_serve_with_workers(environment, count))
    gateway = Gateway(config, environment)
    try:
        started = run_server(gateway, lambda port: _announce(environment, gateway.dev_key, port))
    except START_UP_ERRORS as error:
        _fail(str(error))
    except SystemExit:
        _fail(_port_taken(environment))
    if not started:
        raise typer.Exit(1)


def _serve_with_workers(environment: Environment, count: int) -> int:
    """Run them until a signal; returns the exit code. A worker that cannot start has said why itself."""

    def announce(port: int) -> None:
        _announce(environment, None if environment.redis_url else _kept("dev-key"), port)

    try:
        return supervise(environment, count, announce)
    except START_UP_ERRORS as error:
        _fail(str(error))
    except PortTaken:
        _fail(_port_taken(environment))


@app.command(hidden=True)
def worker(
    number: Annotated[int, typer.Argument(help="Which one it is, for people who list processes.")],
    channel: Annotated[int, typer.Option(help="The descriptor over which its parent talks to it.")],
    port: Annotated[int, typer.Option(help="The port that it shares.")],
) -> None:
    """Run one of several workers; what `serve --workers` starts."""
    environment, config = _load()
    configure_logs(config.log.level)
    try:
        served = run_worker(config, environment, channel_fd=channel, port=port)
    except START_UP_ERRORS as error:
        _fail(str(error))
    except PortTaken:
        _fail(_port_taken(environment))
    if not served:
        raise typer.Exit(1)


def _port_taken(environment: Environment) -> str:
    return (
        f"The gateway cannot listen on {environment.host}:{environment.port}. Does another one run there? "
        "GATEWAY_PORT names another port."
    )


def _load() -> tuple[Environment, Config]:
    environment = _environment()
    try:
        config = load(environment)
        validate(config)
    except ConfigError as error:
        _fail(str(error))
    return environment, config


def _environment() -> Environment:
    try:
        return Environment()
    except ValidationError as error:
        problems = [f"GATEWAY_{'.'.join(map(str, p['loc'])).upper()}: {p['msg']}" for p in error.errors()]
        _fail("\n".join(problems))


def _announce(environment: Environment, dev_key: str | None, port: int) -> None:
    """What a newcomer needs, ready to be pasted."""
    host = environment.host
    base = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    typer.echo(f"\nThe gateway is ready at {base}/v1\n")
    if dev_key is not None:
        body = '{"model": "demo/fast", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
        typer.echo(f"Development key: {dev_key}\n")
        typer.echo("Try it:\n")
        typer.echo(
            f"  curl -N {base}/v1/chat/completions -H 'Authorization: Bearer {dev_key}' "
            f"-H 'Content-Type: application/json' -d '{body}'\n"
        )
    sys.stdout.flush()


@config_app.command("check")
def config_check(
    path: Annotated[str | None, typer.Argument(help="The file; without it, what `serve` would use.")] = None,
) -> None:
    """Say whether a configuration is valid, and where it is not."""
    if path is None:
        _load()
    else:
        try:
            validate(load(Environment(config=Path(path))))
        except ConfigError as error:
            _fail(str(error))
    typer.echo("The configuration is valid.")


@config_app.command("reference")
def print_config_reference() -> None:
    """Print every key and variable, as Markdown."""
    typer.echo(config_reference.reference(), nl=False)


@api_app.command("reference")
def print_api_reference() -> None:
    """Print every endpoint, body and error code, as Markdown."""
    typer.echo(api_reference.reference(), nl=False)


@accounts.command("create")
def accounts_create(
    account: str,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    tier: Annotated[str | None, typer.Option(help="A tier of the configuration.")] = None,
) -> None:
    """Make an account."""
    _print_balance(_call("POST", "/accounts", {"id": account, "name": name, **({"tier": tier} if tier else {})}))


@accounts.command("list")
def accounts_list() -> None:
    """List accounts, newest first."""
    _print(_call("GET", "/accounts"))


@accounts.command("show")
def accounts_show(account: str) -> None:
    """Show an account and its balance."""
    _print(_call("GET", f"/accounts/{_quoted(account)}"))


@keys.command("create")
def keys_create(
    account: str,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    model: Annotated[list[str] | None, typer.Option(help="A model it may use; repeat for more. All without.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="When it expires, e.g. 2027-01-01T00:00:00Z.")] = None,
) -> None:
    """Make a key; it is shown this once."""
    body: dict[str, Any] = {"name": name}
    if model:
        body["models"] = model
    if expires_at:
        body["expires_at"] = expires_at
    _print(_call("POST", f"/accounts/{_quoted(account)}/keys", body))


@keys.command("list")
def keys_list(account: str) -> None:
    """List an account's keys."""
    _print(_call("GET", f"/accounts/{_quoted(account)}/keys"))


@keys.command("revoke")
def keys_revoke(account: str, key_id: str) -> None:
    """Refuse a key from now on."""
    _call("DELETE", f"/accounts/{_quoted(account)}/keys/{_quoted(key_id)}")
    typer.echo("revoked")


@credits.command("add", context_settings={"ignore_unknown_options": True})
def credits_add(
    account: str,
    amount_usd: str,
    idempotency_key: Annotated[str | None, typer.Option(help="Repeat the call safely with the same key.")] = None,
) -> None:
    """Add credit in USD; a negative amount takes it back."""
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    _print_balance(_call("POST", f"/accounts/{_quoted(account)}/credits", {"amount_usd": amount_usd}, headers))


@app.command()
def usage(
    account: Annotated[str | None, typer.Option(help="One account; all without.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many records.")] = 20,
) -> None:
    """Show what was charged, newest first."""
    query = f"?count={count}" + (f"&account={_quoted(account)}" if account else "")
    for row in _call("GET", f"/usage{query}")["data"]:
        record = row["record"]
        tokens = f"{record.get('input_tokens', 0)}+{record.get('output_tokens', 0)}"
        typer.echo(
            f"{row['time']}  {row['account']:<16} {row['outcome']:<10} ${row['charged_usd']}  {tokens:>12} tokens  "
            f"{record.get('model', '')}"
        )


@app.command()
def chat(
    model: Annotated[str, typer.Option(help="The model to talk to.")] = "demo/fast",
    key: Annotated[str | None, typer.Option(envvar="GATEWAY_API_KEY", help="The API key.")] = None,
) -> None:
    """Talk to a model; one line is one message, an empty one ends it."""
    token = key or _kept("dev-key") or _fail("Set GATEWAY_API_KEY to an API key.")
    messages: list[dict[str, str]] = []
    while (line := _ask()) != "":
        messages.append({"role": "user", "content": line})
        answer, before = "", ""
        for kind, piece in _stream(model, messages, token):
            if piece and before == "reasoning" != kind:
                typer.echo()
            before = kind if piece else before
            answer += piece if kind == "content" else ""
            typer.secho(piece, nl=False, dim=kind != "content")
        typer.echo()
        messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _stream(model: str, messages: list[dict[str, str]], token: str) -> Iterator[tuple[str, str]]:
    """What the model says, as (kind, text): content, reasoning, or a note in brackets."""
    body = {"model": model, "messages": messages, "stream": True}
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{_base_url()}/v1/chat/completions"
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=None, trust_env=False) as response:
            if response.status_code != 200:
                _fail(_error_text(response.read()))
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield from _pieces(json.loads(line[6:]))
    except httpx.HTTPError as error:
        _fail(_unreachable(url, error))


def _pieces(chunk: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "error" in chunk:
        yield "note", f"\n[{chunk['error']['message']}]"
    for choice in chunk.get("choices", ()):
        delta = choice["delta"]
        yield "reasoning", delta.get("reasoning_content") or ""
        yield "content", delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            yield "note", f"[{function['name']}] " if function.get("name") else function["arguments"]
    if "x_gateway" in chunk:
        yield "note", f"\n[{chunk['x_gateway']['message']}]"


def _unreachable(url: str, error: httpx.HTTPError) -> str:
    return f"{url}: {error}. Is the gateway running? GATEWAY_PORT or GATEWAY_URL says where it is looked for."


def _call(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """One call of the admin API; prints its error and exits where it fails."""
    environment = _environment()
    key = (
        environment.admin_key
        or _kept("admin-key")
        or _fail("Set GATEWAY_ADMIN_KEY to the gateway's admin key, or run this where GATEWAY_DATA_DIR (.gateway) is.")
    )
    url = f"{_base_url()}/admin/v1{path}"
    try:
        response = httpx.request(
            method,
            url,
            json=body,
            headers={"Authorization": f"Bearer {key}", **(headers or {})},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        _fail(_unreachable(url, error))
    if response.status_code >= 400:
        _fail(_error_text(response.content))
    return response.json() if response.content else None


def _base_url() -> str:
    return os.environ.get("GATEWAY_URL", f"http://127.0.0.1:{_environment().port}").rstrip("/")


def _kept(name: str) -> str | None:
    path = _environment().data_dir / name
    return path.read_text().strip() if path.exists() else None


def _error_text(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return body.decode("utf-8", "replace")


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _print_balance(account: dict[str, str]) -> None:
    typer.echo(f"{account['id']}: ${account['available']} available")


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


experiments = typer.Typer(no_args_is_help=True, help="Comparisons of limits.")
app.add_typer(experiments, name="experiments")


@experiments.callback()
def _experiments() -> None:
    """Without this, typer would make the only command of the group the group itself."""


@experiments.command("report")
def experiments_report(
    name: Annotated[str | None, typer.Option(help="One experiment; all of the configuration without.")] = None,
) -> None:
    """Compare how the variants did."""
    found = [_call("GET", f"/experiments/{_quoted(name)}")] if name else _call("GET", "/experiments")
    if not found:
        typer.echo("The configuration has no experiments.")
    for experiment in found:
        times = f", {experiment['start']} to {experiment['end']}" if experiment["start"] else ""
        typer.echo(f"{experiment['name']}: {experiment['state']}{times}")
        typer.echo(report([_row(variant) for variant in experiment["variants"]]) + "\n")


def _row(variant: dict[str, Any]) -> Row:
    counts = {field: variant[field] for field in Row.__struct_fields__ if field != "cost"}
    return Row(**counts, cost=microusd_of(Decimal(variant["cost_usd"])))
