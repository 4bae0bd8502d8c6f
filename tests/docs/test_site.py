"""The site builds without a warning, and paths that the code names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs._ext import schema_reference
from docs.pictures.draw import DIAGRAMS
from tests.docs.pages import PAGES, PROJECT

SOURCES = ("accounts", "condastore", "environments", "deploy", "templates", "tests")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does: a broken link or anchor is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", folder / "doctrees", "docs", folder / "html"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_the_site_has_every_page_and_loads_nothing_from_other_servers(site: Path) -> None:
    docs = PROJECT / "docs"
    pages = [page.relative_to(docs) for page in PAGES if page.is_relative_to(docs)]
    assert len(pages) > 30
    for page in pages:
        html = (site / page.with_suffix(".html")).read_text()
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?://[^\"]+)\"", html)
        assert not loaded, page


def test_generated_pages_have_every_type_and_command(site: Path) -> None:
    graphql = (site / "reference" / "graphql.html").read_text()
    for name in re.findall(r"^(?:type|input|enum|union) (\w+)", schema(), re.MULTILINE):
        assert f"graphql-{name.lower()}" in graphql, name
    assert "condastore-env-build" in (site / "reference" / "cli.html").read_text()


def schema() -> str:
    return schema_reference.SCHEMA.read_text()


def test_diagrams_are_what_their_program_draws() -> None:
    for name, diagram in DIAGRAMS.items():
        path = PROJECT / "docs" / "pictures" / f"{name}.svg"
        assert path.read_text() == diagram().svg(), "run python -m docs.pictures.draw"


def test_links_in_pages_outside_the_site_lead_to_files_and_headings() -> None:
    """Sphinx checks the pages of docs/; README and its neighbors are read in the repository."""
    for page in (page for page in PAGES if page.parent == PROJECT):
        for target in re.findall(r"\]\(([^)#][^)]*)\)", page.read_text()):
            if not target.startswith(("http", "mailto:")):
                path, _, anchor = target.partition("#")
                assert (page.parent / path).exists(), f"{page.name}: {target}"
                assert not anchor or anchor in _anchors(page.parent / path), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_pages_that_messages_and_comments_name_exist() -> None:
    named = re.compile(r"(?<![\w/])docs/[\w/.-]+\.(?:md|py|svg)")
    missing = set()
    for folder in SOURCES:
        for path in (PROJECT / folder).rglob("*"):
            if path.suffix in {".py", ".html", ".yaml", ".service", ".conf", ".txt"}:
                missing |= {
                    f"{path.relative_to(PROJECT)}: {name}"
                    for name in named.findall(path.read_text(errors="replace"))
                    if not (PROJECT / name).exists()
                }
    assert not missing


def test_modules_that_pages_name_exist() -> None:
    """`environments/domain/urls.py` in a page is a file; a name alone is next to the one before."""
    missing = []
    for page in PAGES:
        folder = PROJECT
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text().replace("NAME.py", "")):
            if (PROJECT / name).exists():
                folder = (PROJECT / name).parent
            elif "/" in name or not (list(folder.glob(name)) or list(PROJECT.glob(f"*/**/{name}"))):
                missing.append(f"{page.relative_to(PROJECT)}: {name}")
    assert not missing
