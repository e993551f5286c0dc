"""A stand-in for the hub's HTTP interface, on the loopback: what its client asks, it answers.

Repositories are folders. What the real hub does is done here in the same headers and codes: commits
and ETags, ranges, gated and missing repositories, and a connection that dies half way.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.utils


@dataclass
class Repository:
    """One repository: the files of a folder, at one commit."""

    folder: Path
    tags: tuple[str, ...] = ()
    token: str | None = None
    """Without it the repository is gated: its list is public, its files are not."""
    disabled: bool = False
    dies: Counter[str] = field(default_factory=Counter)
    """File -> how many more of its transfers end half way."""
    pauses: float = 0.0
    """Seconds between one kilobyte of a file and the next, as on a slow line."""
    full_disk_sizes: dict[str, int] = field(default_factory=dict)
    """File -> size that the list says, in place of its own."""

    @property
    def files(self) -> dict[str, Path]:
        found = (file for file in sorted(self.folder.rglob("*")) if file.is_file())
        return {file.relative_to(self.folder).as_posix(): file for file in found}

    @property
    def commit(self) -> str:
        names = json.dumps({name: digest(file) for name, file in self.files.items()})
        return hashlib.sha256(names.encode()).hexdigest()[:40]

    def listed(self, key: str) -> list[dict[str, Any]]:
        """Every file as the lists of the hub have it, its name under `key`."""
        rows = []
        for name, file in self.files.items():
            size = self.full_disk_sizes.get(name, file.stat().st_size)
            row = {"type": "file", key: name, "size": size, "oid": digest(file)[:40]}
            row["blobId"] = row["oid"]
            if name.endswith((".safetensors", ".bin", ".parquet")):
                lfs = {"oid": digest(file), "sha256": digest(file), "size": size}
                row["lfs"] = lfs | {"pointerSize": 100}
            rows.append(row)
        return rows


def _level(rows: list[dict[str, Any]], under: str) -> list[dict[str, Any]]:
    """Files right in a folder, and its folders."""
    names = [row["path"].removeprefix(under) for row in rows]
    folders = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
    return [row for row, name in zip(rows, names, strict=True) if "/" not in name] + [
        {"type": "directory", "path": under + name, "oid": "0" * 40, "size": 0} for name in folders
    ]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


IS_OLD_CLIENT = hasattr(huggingface_hub.utils, "reset_sessions")
"""Whether the hub's client is below 1, which keeps a session and asks by `requests`."""


def forget_session():
    """Let the client ask anew whether it is offline."""
    if IS_OLD_CLIENT:
        huggingface_hub.utils.reset_sessions()


class Hub:
    """Serves `repositories`, `owner/name` or `datasets/owner/name` -> repository."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path, token) of each request, in order."""
        self.begins: dict[str, int] = {}
        """File -> first byte that was asked for last."""
        self.status: int | None = None
        """Answers everything with this code."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fetched(self) -> list[str]:
        """Files whose content was asked for, without their repository and commit."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(body)

        def _answer(self, body: bytes = b"") -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            hub.requests.append((self.command, path, bearer))
            if hub.status is not None:
                return self._refuse(hub.status, "")
            if path.startswith(("api/models/", "api/datasets/")):
                kind, rest = path.removeprefix("api/").split("/", 1)
                prefix = "" if kind == "models" else f"{kind}/"
                owner, name, *call = rest.split("/")
                repository = hub.repositories.get(f"{prefix}{owner}/{name}")
                if repository is None:
                    return self._refuse(401, "RepoNotFound")
                return self._list(repository, f"{owner}/{name}", call, body)
            if "/resolve/" in path:
                name, _, rest = path.partition("/resolve/")
                revision, _, file = rest.partition("/")
                repository = hub.repositories.get(name)
                if repository is None:
                    return self._refuse(401, "RepoNotFound")
                if repository.token not in (None, bearer):
                    return self._refuse(403, "GatedRepo")
                return self._file(repository, revision, file)
            return self._refuse(404, "")

        def _list(self, repository: Repository, name: str, call: list[str], body: bytes) -> None:
            if repository.disabled:
                return self._refuse(
                    403, "", {"X-Error-Message": "Access to this resource is disabled."}
                )
            revision = call[1] if len(call) > 1 else "main"
            if revision not in ("main", repository.commit, *repository.tags):
                return self._refuse(404, "RevisionNotFound")
            if call[:1] == ["tree"]:
                under = "".join(f"{part}/" for part in call[2:])
                rows = [row for row in repository.listed("path") if row["path"].startswith(under)]
                if (
                    parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower()
                    != "true"
                ):
                    rows = _level(rows, under)
                return self._json(rows)
            if call[:1] == ["paths-info"]:
                given = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
                paths = given if isinstance(given, list) else [given]
                rows = repository.listed("path")
                return self._json([row for row in rows if row["path"] in paths])
            return self._json(
                {
                    "id": name,
                    "sha": repository.commit,
                    "private": False,
                    "gated": "auto" if repository.token else False,
                    "disabled": False,
                    "tags": [],
                    "siblings": repository.listed("rfilename"),
                    "lastModified": "2026-01-01T00:00:00.000Z",
                }
            )

        def _file(self, repository: Repository, revision: str, name: str) -> None:
            if revision not in ("main", repository.commit, *repository.tags):
                self._refuse(404, "RevisionNotFound")
                return
            headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
            if name not in repository.files:
                self._refuse(404, "EntryNotFound", headers)
                return
            content = repository.files[name].read_bytes()
            headers["ETag"] = f'"{digest(repository.files[name])}"'
            begin = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
            rest = content[int(begin) :]
            hub.begins[name] = int(begin)
            self.send_response(206 if int(begin) else 200)
            if int(begin):
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            headers["Content-Length"] = str(len(rest))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if repository.dies[name] > 0:
                repository.dies[name] -= 1
                self.wfile.write(rest[: len(rest) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if repository.pauses and name.endswith(".safetensors"):
                for place in range(0, len(rest), 1000):
                    with suppress(OSError):  # Whoever asked has gone.
                        self.wfile.write(rest[place : place + 1000])
                    time.sleep(repository.pauses)
                return
            self.wfile.write(rest)

        def _json(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
