"""What a reload does to models: another catalogue, and a cheaper model that accounts were sent to."""

import json
from functools import partial
from pathlib import Path

import pytest

from gateway.config import Config, ConfigError
from gateway.wiring import validate
from tests.http.test_reload import Json, Site, site_of, until


async def test_a_catalogue_that_was_renewed_is_seen_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path, cards = tmp_path / "cards.json", {"cards": [{"models": ["demo/*"], "capabilities": ["images"]}]}
    path.write_text(json.dumps(cards))
    config = {"catalogue": str(path), "models": {"fast": {"targets": ["demo/fast"]}}}
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    async with site_of(tmp_path, config) as site:
        assert (await site.ask("fast", tools=tools)).json()["error"]["code"] == "unsupported_value"
        path.write_text('{"cards": [{"models": ["demo/*"], "price": {"input": "dear"}}]}')
        await until(partial(site.has_refused, 1))
        (problem,) = site.lines("config_refused")[0]["problems"]
        assert f"catalogue: {path}: " in problem and "price.input" in problem
        assert (await site.ask("fast", tools=tools)).status_code == 400
        cards["cards"][0]["capabilities"] = ["tools"]
        path.write_text(json.dumps(cards))
        await until(lambda: site.lines("config_reloaded"))
        (line,) = site.lines("config_reloaded")
        assert (line["trigger"], line["changed"]) == ("watch", ["catalogue"])
        assert (await site.ask("fast", tools=tools)).status_code == 200
        assert len(site.lines("config_refused")) == 1


async def test_a_cheaper_model_that_is_gone_is_refused_while_a_tier_names_it_and_not_looked_for_later(
    tmp_path: Path,
) -> None:
    flow = {"identical_prompts": 1, "identical_action": "downgrade", "downgrade_to": "cheap", "downgrade_s": 600}
    config: Json = {
        "reload": {"watch": False},
        "models": {"fast": {"targets": ["demo/fast"]}, "cheap": {"targets": ["demo/slow"]}},
        "tiers": {"default": {"flow": flow}},
    }
    async with site_of(tmp_path, config) as site:
        for _ in range(2):
            assert (await site.ask("fast")).status_code == 200
        targets = await answered_by(site, 2)
        assert (await site.ask("fast", messages=[{"role": "user", "content": "Another"}])).status_code == 200
        assert (await answered_by(site, 3))[0] == "demo/slow" and "demo/fast" in targets
        del config["models"]["cheap"]
        site.write(config)
        refused = await site.gateway.admin.post("/config/reload")
        message = refused.json()["error"]["message"]
        assert refused.status_code == 400 and "tiers.default.flow.downgrade_to: there is no model 'cheap'" in message
        config["tiers"]["default"] = {}
        assert (await site.change(config))["changed"] == ["models.cheap", "tiers.default"]
        assert (await site.ask("fast", messages=[{"role": "user", "content": "A third"}])).status_code == 200
        assert (await answered_by(site, 4))[0] == "demo/fast", "what was asked for, since the cheaper one is gone"


async def answered_by(site: Site, count: int) -> list[str]:
    """The targets of so many requests, the last one first."""
    await site.gateway.settled(records=count)
    return [row["record"]["target"] for row in await site.gateway.usage()]


@pytest.mark.parametrize("model", ["demo/*", "lab/x", "cheap", "nobody/x"])
def test_a_downgrade_leads_to_a_model_that_is_there(model: str) -> None:
    config = Config.model_validate(
        {
            "models": {"demo/*": {"tokenizer": "bytes"}, "lab/x": {"tokenizer": "bytes"}},
            "tiers": {"free": {"flow": {"downgrade_to": model}}},
        }
    )
    with pytest.raises(ConfigError, match=r"tiers\.free\.flow\.downgrade_to: there is no model"):
        validate(config)
