"""``gateway models`` as an operator runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

CONFIG = {
    "providers": {
        "lab": {"base_url": "http://127.0.0.1:9/v1", "price": {"input": 1, "output": 2}, "models": ["qwen"]},
        "bare": {"base_url": "http://127.0.0.1:9/v1"},
    },
    "models": {
        "fast": {"targets": ["lab/qwen", "lab/other"], "output_tokens_max": 500},
        "lab/*": {"context_tokens": 32_000, "capabilities": ["tools"]},
        "bare/x": {"refuses": ["temperature"]},
    },
}


def command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run ``gateway`` to its end in a folder that holds a configuration."""
    (folder / "gateway.yaml").write_text(yaml.safe_dump(CONFIG))
    kept = {name: it for name, it in os.environ.items() if not name.startswith("GATEWAY_") and "API_KEY" not in name}
    return subprocess.run(
        [sys.executable, "-m", "gateway", "models", *args],
        capture_output=True,
        text=True,
        cwd=folder,
        env=kept,
        timeout=50,
    )


def test_models_are_listed_with_what_is_known_of_their_targets(tmp_path: Path) -> None:
    ran = command(tmp_path, "list")
    assert ran.returncode == 0, ran.stderr
    lines = {tuple(line.split()[:2]): line for line in ran.stdout.splitlines()}
    assert lines["fast", "lab/qwen"].split()[2:6] == ["32,000", "500", "tools", "1,"]
    assert ("fast", "lab/other") in lines
    assert "no price" in next(line for line in lines.values() if line.startswith("bare/x"))
    assert not any(line.startswith("lab/*") for line in lines.values())


def test_one_model_as_json_says_everything(tmp_path: Path) -> None:
    (row,) = json.loads(command(tmp_path, "list", "bare/x", "--json").stdout)
    assert row["refuses"] == ["temperature"] and row["price"] is None and row["source"] == "configuration"


def test_a_name_that_is_no_model_is_told(tmp_path: Path) -> None:
    ran = command(tmp_path, "list", "nobody/x")
    assert ran.returncode == 1 and "nobody/x" in ran.stderr


def test_a_refreshed_catalogue_counts_from_then_on(tmp_path: Path) -> None:
    cards = {"cards": [{"models": ["bare/*"], "context_tokens": 5000, "price": {"input": 3, "output": 4.5}}]}
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    ran = command(tmp_path, "refresh", "cards.json")
    assert ran.returncode == 0 and "1 card" in ran.stdout
    (row,) = json.loads(command(tmp_path, "list", "bare/x", "--json").stdout)
    assert row["context_tokens"] == 5000 and row["price"] == {"input": 3, "output": 4.5}


def test_a_bad_file_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "cards.json").write_text('{"cards": [{"models": ["bare/x"], "context": 1}]}')
    ran = command(tmp_path, "refresh", "cards.json")
    assert ran.returncode == 1 and "$.cards[0]" in ran.stderr
    assert not (tmp_path / ".gateway" / "models.json").exists()
