"""Which requests are mirrored, and which mirrors a configuration may have."""

import random

import pytest

from gateway.config import ConfigError
from gateway.config_file import parse
from gateway.routing.mirrors import MirrorRule, Mirrors
from gateway.wiring import validate
from gateway.wiring_models import mirrors

TO = "to: demo/slow, share: 0.5, account: ops"

MISTAKES = {
    "nobody": ("{fast: {targets: [demo/fast], mirror: {to: nobody/x, share: 1, account: ops}}}", "no model 'nobody/x'"),
    "a pattern": ("{demo/*: {mirror: {" + TO + "}}}", "a pattern takes no mirror"),
    "to a pattern": ("{demo/fast: {mirror: {to: demo/*, share: 1, account: ops}}}", "mirror.to"),
    "itself": ("{demo/slow: {mirror: {" + TO + "}}}", "'demo/slow' has a mirror itself"),
    "a mirror's mirror": (
        "{demo/fast: {mirror: {" + TO + "}}, demo/slow: {mirror: {to: demo/tool, share: 1, account: ops}}}",
        "models.demo/fast.mirror.to: 'demo/slow' has a mirror itself",
    ),
    "no share": ("{demo/fast: {mirror: {to: demo/slow, share: 0, account: ops}}}", "share"),
    "more than all": ("{demo/fast: {mirror: {to: demo/slow, share: 1.5, account: ops}}}", "share"),
    "no account's name": ("{demo/fast: {mirror: {to: demo/slow, share: 1, account: 'a{b}'}}}", "account"),
}


def rule(share: float, streams: int = 1_000) -> MirrorRule:
    return MirrorRule(to="demo/slow", share=share, account="ops", streams=streams)


def counted(found: Mirrors) -> dict[str, float]:
    samples = [sample for metric in found.results.collect() for sample in metric.samples]
    return {sample.labels["result"]: sample.value for sample in samples if sample.name.endswith("_total")}


@pytest.mark.parametrize(("text", "hint"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mirror_that_cannot_be_is_refused(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(parse(f"models: {text}", "my.yaml"))
    assert hint in str(caught.value)


def test_an_alias_or_a_providers_model_may_be_a_mirror() -> None:
    other = "{to: b, share: 1, account: ops}"
    config = parse(
        "models: {a: {targets: [demo/fast], mirror: {" + TO + "}}, b: {targets: [demo/fast]}, "
        "demo/tool: {mirror: " + other + "}}",
        "my.yaml",
    )
    validate(config)
    assert mirrors(config) == {
        "a": MirrorRule(to="demo/slow", share=0.5, account="ops", streams=20),
        "demo/tool": MirrorRule(to="b", share=1, account="ops", streams=20),
    }


def test_the_share_is_that_of_the_requests() -> None:
    found = Mirrors(random.Random(1).random)
    assert sum(found.take("a", rule(1)) for _ in range(100)) == 100
    assert 30 < sum(found.take("b", rule(0.05)) for _ in range(1_000)) < 75
    assert counted(found) == {}


def test_each_name_has_its_own_bound_on_what_runs_at_once() -> None:
    found = Mirrors()
    assert [found.take("a", rule(1, streams=2)) for _ in range(3)] == [True, True, False]
    assert found.take("b", rule(1, streams=2))
    found.leave("a", "complete")
    assert found.take("a", rule(1, streams=2))
    assert counted(found) == {"skipped": 1, "complete": 1}
