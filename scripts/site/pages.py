"""Pages of the site that lie outside docs/, and the links between them: a hook of mkdocs.yml.

The README becomes the first page. On the site the folder docs/ is the root: links are rewritten as they would be found
there, and a file of the project that a page links to (a recipe, a script) is published beside it, so that the strict
build checks those links, too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and every file that a page links to there."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for file in list(files.documentation_pages()):
        for target in LINK.findall(file.content_string):
            name = _in_project(file.src_uri, target)
            known = files.get_file_from_path(OUTSIDE.get(name, name)) is not None
            if not known and not name.startswith("docs/") and (ROOT / name).is_file():
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links for the places that the files have on the site."""
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        name = _in_project(page.file.src_uri, match.group(1))
        on_site = OUTSIDE.get(name, name.removeprefix("docs/"))
        return posixpath.relpath(on_site, here or ".") if (ROOT / name).exists() else match.group(1)

    return LINK.sub(moved, markdown)


def _in_project(page: str, target: str) -> str:
    """The file of the project that `target` names on `page`, both with slashes."""
    source = next((name for name, moved in OUTSIDE.items() if moved == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
