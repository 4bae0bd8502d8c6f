"""Sphinx configuration. `make docs` builds the site; every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

import condastore  # noqa: E402  only from this path

project = "condastore"
author = "the condastore contributors"
version = release = condastore.__version__
extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "docs._ext.cli_reference",
    "docs._ext.schema_reference",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["attrs_block", "deflist"]
#: Headings down to this level can be linked to as `page.md#heading`, as on GitHub.
myst_heading_anchors = 4
nitpicky = True
html_theme = "furo"
html_title = f"condastore {version}"
html_static_path = ["_static"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
# Pages load nothing from other servers, so that the site can be read on an isolated network.
copybutton_exclude = ".linenos, .gp, .go"
