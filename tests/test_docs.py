"""The documentation keeps up with the code: references, links, and every configuration it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.config_file import parse

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in DOCS:
        fenced = [text for name, text in FENCED.findall(page.read_text()) if name == language]
        found += [(f"{relative(page)}-{number}", text) for number, text in enumerate(fenced, 1)]
    return found


def configurations() -> list[tuple[str, str]]:
    return [(name, text) for name, text in blocks("yaml") if text.partition(":")[0] in Config.model_fields]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "command"), [("configuration.md", "config"), ("api.md", "api")])
def test_the_generated_references_are_up_to_date(page: str, command: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "gateway", command, "reference"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / page).read_text() == made.stdout, "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    for folder in (ROOT / "docs", ROOT / "docs" / "decisions"):
        index = (folder / "README.md").read_text()
        missing = [page.name for page in folder.glob("*.md") if page.name != "README.md" and page.name not in index]
        assert not missing, relative(folder)


@pytest.mark.parametrize(("name", "text"), configurations(), ids=lambda value: value.partition("\n")[0])
def test_every_configuration_shown_is_valid(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(variable, "set")
    parse(text, name)


def test_there_are_configurations_to_check() -> None:
    assert len(configurations()) >= 5
