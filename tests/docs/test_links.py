"""Every link of every page leads somewhere."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.docs_pages import NAMES, ROOT, anchors, links


def is_external(link):
    return urlsplit(link).scheme in ("http", "https")


@pytest.mark.parametrize("name", NAMES)
def test_links_within_the_repository_lead_to_files_and_headings_that_are_there(name):
    broken = []
    for link in links(name):
        if is_external(link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.is_relative_to(ROOT), f"{name}: {link} leads out of the repository"
        if not target.exists() or (anchor and anchor not in anchors(str(target.relative_to(ROOT)))):
            broken.append(link)
    assert not broken, f"{name}: {broken}"


def test_every_page_is_reached_from_the_readme():
    # The site has its own table of contents; on GitHub a reader has links alone.
    seen, queue = set(), ["README.md"]
    while queue:
        name = queue.pop()
        seen.add(name)
        for link in links(name):
            path = unquote(link).partition("#")[0]
            target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
            found = str(target.relative_to(ROOT)) if target.is_relative_to(ROOT) else ""
            if not is_external(link) and found in NAMES and found not in seen:
                queue.append(found)
    assert set(NAMES) - seen <= {"docs/index.md", "CHANGELOG.md"}


@pytest.mark.slow
def test_links_to_other_sites_are_answered():
    wanted = sorted({link for name in NAMES for link in links(name) if is_external(link)})
    dead = []
    for link in wanted:
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        try:
            connection = http.client.HTTPSConnection(parts.netloc, timeout=10)
            connection.request("GET", parts.path or "/", headers={"User-Agent": "accel-search"})
            status = connection.getresponse().status
        except (OSError, socket.gaierror) as error:
            pytest.skip(f"not online ({error}): links to other sites were not checked")
        if status in (404, 410):
            dead.append(link)
    assert not dead
