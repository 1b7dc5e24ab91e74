"""A local stand-in for the Hugging Face hub, for the hub's real clients.

It answers what ``huggingface_hub`` and ``datasets`` ask when a repository is fetched at a commit,
over plain HTTP on this machine's own address: point ``HF_ENDPOINT`` at :attr:`HubStandin.url`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["model", "dataset"]

_API = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?/?"
)
_FILE = re.compile(
    r"/(?P<datasets>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


class HubStandin:
    """Repositories in a folder, ``<kind>/<owner>/<name>/<commit>/...``, and the requests that came.

    Args:
        folder: where the repositories are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest: dict[tuple[str, str], str] = {}
        self.requests: list[str] = []
        self.url = ""

    def publish(self, kind: Kind, repo: str, files: Mapping[str, bytes]) -> str:
        """Add a commit to a repository, which is its newest from then on.

        Returns:
            the commit, 40 hexadecimal digits that follow from the files
        """
        digest = hashlib.sha1(repo.encode())  # noqa: S324 - named like git's, guards nothing
        for name in sorted(files):
            digest.update(f"{name} {len(files[name])}\n".encode() + files[name])
        commit = digest.hexdigest()
        for name, content in files.items():
            file = self.folder / kind / repo / commit / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.newest[kind, repo] = commit
        return commit

    def commit(self, kind: str, repo: str, revision: str | None) -> str | None:
        """Find the commit that a revision names, or None."""
        if revision in (None, "main"):
            return self.newest.get((kind, repo))
        return revision if (self.folder / kind / repo / str(revision)).is_dir() else None

    def files(self, kind: str, repo: str, commit: str) -> dict[str, Path]:
        """List a commit's files by their paths in the repository."""
        top = self.folder / kind / repo / commit
        return {f.relative_to(top).as_posix(): f for f in sorted(top.rglob("*")) if f.is_file()}

    @contextmanager
    def serving(self) -> Iterator["HubStandin"]:
        """Answer on a free port of this machine's own address as long as this is open."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}


def _handler(hub: HubStandin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: pytest shows what matters."""

        def do_GET(self) -> None:
            self._answer(b"")

        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _answer(self, body: bytes) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path)
            if found := _API.fullmatch(path):
                self._api(found, body)
            elif found := _FILE.fullmatch(path):
                self._file(found)
            else:
                self._refuse("EntryNotFound", "no such page")

        def _api(self, found: re.Match[str], body: bytes) -> None:
            kind, repo, what = found["kind"], found["repo"], found["what"]
            if (kind, repo) not in hub.newest:
                self._refuse("RepoNotFound", "Repository not found")
                return
            commit = hub.commit(kind, repo, found["revision"])
            if commit is None:
                self._refuse("RevisionNotFound", f"Invalid rev id: {found['revision']}")
                return
            files = hub.files(kind, repo, commit)
            if what in (None, "revision"):
                siblings = [{"rfilename": name} for name in files]
                about = {"id": repo, "sha": commit, "private": False, "gated": False}
                self._json({**about, "disabled": False, "tags": [], "siblings": siblings})
            elif what == "tree":
                query = parse_qs(urlsplit(self.path).query)
                deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                self._json(self._tree(files, found["path"] or "", deep=deep))
            else:
                form = json.loads(body) if body[:1] == b"{" else parse_qs(body.decode())
                self._json([_entry(p, files[p].read_bytes()) for p in form["paths"] if p in files])

        def _tree(self, files: dict[str, Path], below: str, *, deep: bool) -> list[dict[str, Any]]:
            prefix = f"{below}/" if below else ""
            entries: dict[str, dict[str, Any]] = {}
            for name, file in files.items():
                if not name.startswith(prefix):
                    continue
                parts = name.removeprefix(prefix).split("/")
                for depth in range(1, len(parts) if deep else min(2, len(parts))):
                    folder = prefix + "/".join(parts[:depth])
                    entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0"}
                if deep or len(parts) == 1:
                    entries[name] = _entry(name, file.read_bytes())
            return list(entries.values())

        def _file(self, found: re.Match[str]) -> None:
            kind = "dataset" if found["datasets"] else "model"
            commit = hub.commit(kind, found["repo"], found["revision"])
            if commit is None:
                self._refuse("RevisionNotFound", f"Invalid rev id: {found['revision']}")
                return
            file = hub.files(kind, found["repo"], commit).get(found["path"])
            if file is None:
                self._refuse("EntryNotFound", "Entry not found", commit)
                return
            content = file.read_bytes()
            headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit}
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if part is None:
                self._send(200, content, "application/octet-stream", headers)
                return
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], "application/octet-stream", headers)

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), "application/json", {})

        def _refuse(self, code: str, why: str, commit: str | None = None) -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": why}
            if commit is not None:
                headers["X-Repo-Commit"] = commit
            self._send(404, json.dumps({"error": why}).encode(), "application/json", headers)

        def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
