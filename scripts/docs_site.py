"""Hooks of mkdocs: make one site of docs/, the root's pages and the results that pages link to.

A link is written once, relative to the file that it stands in, so that it works where the repository is browsed. Here
it becomes a link of the site:

* to a page of docs/, or to a root file that is a page here: to that page;
* to a file under benchmarks/results: to a copy of it, which the site contains;
* to any other path of the repository: no link, its text alone. (The site does not contain the source.)

A link to a path that is not there ends the build. So does a table or a list that Python-Markdown left as text, which
happens where a line before it is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the root that are pages of the site, and their names there."""
SOURCES = {page: source for source, page in ROOT_PAGES.items()}
RESULTS = PurePosixPath("benchmarks/results")

LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
OUTSIDE = re.compile(r"^(?:[a-z]+:|#|/)")
LEFT_AS_TEXT = re.compile(r"<p>(?:[^<]|<(?!/p>))*?(?:\|\s*---|\n\* )", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the root's pages and the results that any page links to."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    wanted = {
        path
        for page in files.documentation_pages()
        for path, _anchor in _paths(page.content_string, _source(page.src_uri))
        if path.parent == RESULTS
    }
    for path in sorted(wanted):
        files.append(File.generated(config, _copied(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the repository's links into the site's. Raises PluginError for a link to nothing."""
    uri = page.file.src_uri

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        if OUTSIDE.match(target):
            return found[0]
        path, anchor = _resolve(target, _source(uri))
        if not (ROOT / path).exists():
            raise PluginError(f"{_source(uri)}: {target}: there is no {path}")
        of_site = _of_site(path)
        if of_site is None:
            return found["text"]
        relative = os.path.relpath(of_site, PurePosixPath(uri).parent)
        return f"{found['image']}[{found['text']}]({relative}{anchor})"

    return LINK.sub(link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Raises PluginError where a table or a list was not seen as one."""
    left = LEFT_AS_TEXT.search(html)
    if left:
        raise PluginError(f"{_source(page.file.src_uri)}: no empty line before a table or list: {left[0][:80]!r}")
    return html


def _source(uri: str) -> PurePosixPath:
    """The file that a page is made of, relative to the root."""
    return PurePosixPath(SOURCES.get(uri, f"docs/{uri}"))


def _paths(markdown: str, source: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    for found in LINK.finditer(markdown):
        if not OUTSIDE.match(found["target"]):
            yield _resolve(found["target"], source)


def _resolve(target: str, source: PurePosixPath) -> tuple[PurePosixPath, str]:
    """("gpu.md#memory", docs/bench.md) -> (docs/gpu.md, "#memory")."""
    path, hash_, anchor = target.partition("#")
    return PurePosixPath(os.path.normpath(source.parent / path)), hash_ + anchor


def _of_site(path: PurePosixPath) -> str | None:
    """Returns the place of a file of the repository in the site; None: the site does not have it."""
    if path.is_relative_to("docs") and (ROOT / path).is_file():
        return str(path.relative_to("docs"))
    if path.parent == RESULTS:
        return _copied(path)
    return ROOT_PAGES.get(str(path))


def _copied(path: PurePosixPath) -> str:
    return f"results/{path.name}"
