"""MkDocs hooks: add pages that lie outside of docs/, and make links work both in the repository and on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[1]
_ELSEWHERE = {
    "README.md": "index.md",
    "CHANGES.md": "changes.md",
    "containers/README.md": "containers.md",
    "CITATION.cff": "CITATION.cff",
}
_SOURCE = {page: source for source, page in _ELSEWHERE.items()}
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    for source, page in _ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    del config, files
    here = posixpath.dirname(_SOURCE.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def on_the_site(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, link[1]))
        return f"]({_ELSEWHERE.get(path, path.removeprefix('docs/'))}"

    return _LINK.sub(on_the_site, markdown)
