"""How each target is started, and what is switched on in it.

A plan writes a configuration into a folder and says what to run there, given the target's port and the mock's.
"""

import json
import os
import pwd
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import litellm_python, portkey_server, tensorzero_python
from benchmarks.targets import KEY, Launch

ROOT = Path(__file__).resolve().parent.parent
MODELS = (
    *("burst-16", "burst-4x64", "first-16", "paced-20x20", "paced-20x200", "paced-20x600", "paced-20x2000"),
    "slow-0.25x1000",
)
PRICE = {"input": 0.15, "output": 0.60}  # USD per million tokens, in the gateway


def plan_gateway(folder: Path, port: int, upstream_port: int) -> Launch:
    provider = {"base_url": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "${BENCH_KEY}", "price": PRICE}
    tier = {"requests": {"limit": 100_000_000, "period_s": 60}, "concurrent_streams": 100_000}
    config = folder / "gateway.yaml"
    settings = {
        "providers": {"mock": {"type": "openai"} | provider, "claude": {"type": "anthropic"} | provider},
        "tiers": {"default": tier},
        "log": {"level": "info"},
        "resume": {"orphan_s": 1},  # streams whose clients left must not burden the next scenario
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    admin_key = "admin-" + uuid.uuid4().hex
    env = {
        "GATEWAY_CONFIG": str(config),
        "GATEWAY_DATA_DIR": str(folder / "state"),
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_KEY": admin_key,
        "BENCH_KEY": KEY,
        "PYTHONPATH": str(ROOT / "src"),
    }
    return Launch(
        command=[sys.executable, "-m", "gateway", "serve"],
        ready_path="/readyz",
        env=env,
        prefix="mock/",
        translated_prefix="claude/",
        admin_key=admin_key,
        data_folder=folder / "state",
    )


def plan_litellm(folder: Path, port: int, upstream_port: int) -> Launch:
    base_url = f"http://127.0.0.1:{upstream_port}/v1"
    rows = [
        {"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": base_url, "api_key": KEY}}
        for model in MODELS
    ]
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": rows, "general_settings": {"master_key": KEY}}))  # JSON is YAML
    command = [str(litellm_python().with_name("litellm")), "--config", str(config), "--host", "127.0.0.1"]
    return Launch(
        command=[*command, "--port", str(port), "--num_workers", "1"],
        ready_path="/health/liveliness",
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # no look-up on the internet while it starts
    )


def plan_portkey(folder: Path, port: int, upstream_port: int) -> Launch:
    host = f"http://127.0.0.1:{upstream_port}/v1"
    return Launch(
        command=[shutil.which("node") or "node", str(portkey_server()), f"--port={port}", "--headless"],
        ready_path="/",
        env={"NODE_ENV": "production"},
        headers={"x-portkey-provider": "openai", "x-portkey-custom-host": host},
    )


def plan_tensorzero(folder: Path, port: int, upstream_port: int) -> Launch:
    lines = ["[gateway]", "observability.enabled = false"]
    for model in MODELS:
        lines += [f'[models."{model}"]', 'routing = ["mock"]', f'[models."{model}".providers.mock]', 'type = "openai"']
        lines += [f'model_name = "{model}"', f'api_base = "http://127.0.0.1:{upstream_port}/v1/"']
        lines += ['api_key_location = "env::BENCH_KEY"']
    config, port_file = folder / "tensorzero.toml", folder / "port"
    config.write_text("\n".join(lines))
    server = Path(__file__).with_name("tensorzero_server.py")
    return Launch(
        command=[str(tensorzero_python()), str(server), str(config), str(port_file)],
        ready_path="",
        env={"BENCH_KEY": KEY, "TENSORZERO_DISABLE_PSEUDONYMOUS_USAGE_ANALYTICS": "1"},
        path="/openai/v1/chat/completions",
        prefix="tensorzero::model_name::",
        port_file=port_file,
    )


def plan_nginx(folder: Path, port: int, upstream_port: int) -> Launch:
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(f"""
        {user} worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
        worker_rlimit_nofile 16384; events {{ worker_connections 16384; }}
        http {{
          access_log off; keepalive_requests 1000000000; {paths}
          client_max_body_size 8m; client_body_buffer_size 2m;
          upstream mock {{ server 127.0.0.1:{upstream_port}; keepalive 64; keepalive_requests 1000000000; }}
          server {{
            listen 127.0.0.1:{port} backlog=4096;
            location = /ready {{ return 200; }}
            location / {{
              proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
            }}
          }}
        }}""")
    command = [shutil.which("nginx") or "nginx", "-c", str(config), "-e", f"{folder}/error.log"]
    return Launch(command=command, ready_path="/ready")


PLANS: dict[str, Callable[[Path, int, int], Launch] | None] = {
    "direct": None,
    "gateway": plan_gateway,
    "litellm": plan_litellm,
    "portkey": plan_portkey,
    "tensorzero": plan_tensorzero,
    "nginx": plan_nginx,
}
