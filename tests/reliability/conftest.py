"""Results are kept whenever these tests take part; what takes long runs when asked for (``make reliability``)."""

import pytest

from tests.reliability.results import Recorder


def pytest_configure(config: pytest.Config) -> None:
    """Watch the whole session: rows name tests of other folders as evidence too."""
    config.pluginmanager.register(Recorder(), "reliability-results")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow ones out where nobody chose by a marker."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
