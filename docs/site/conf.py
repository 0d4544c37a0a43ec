"""The documentation as a site: Sphinx reads the pages where GitHub shows them, so that each link works in both.

`make docs` builds it from the root of the repository. The navigation is made from the lists of ``docs/README.md``.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
INDEX = "docs/README"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "Transform Gateway"
release = version = PROJECT["version"]
html_title = project
html_show_copyright = False
html_css_files = ["site.css"]
html_static_path = ["_static"]

extensions = ["myst_parser"]
myst_heading_anchors = 4
root_doc = INDEX
include_patterns = ["*.md", "docs/*.md", "deploy/README.md", "notebooks/README.md", "tests/benchmarks/README.md"]
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navbar_center": [],
    "navbar_persistent": [],
    "navbar_end": ["search-button-field", "theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": ["theme-version"],
    "show_prev_next": False,
}
html_sidebars = {"**": ["pages.html"]}
html_additional_pages = {"index": "redirect.html"}
templates_path = ["_templates"]
html_show_sourcelink = False


def add_navigation(_: Sphinx, page: str, content: list[str]) -> None:
    """Add a table of contents for each reader to the index, with the pages that its list names."""
    if page != INDEX:
        return
    for section in re.split(r"^##? ", content[0], flags=re.MULTILINE)[1:]:
        title, _newline, text = section.partition("\n")
        links = re.findall(r"\]\(([^)#]+)\.md[)#]", text)
        pages = ["/" + posixpath.normpath(posixpath.join("docs", link)) for link in dict.fromkeys(links)]
        content[0] += "\n".join(["", "", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
