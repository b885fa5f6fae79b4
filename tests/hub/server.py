"""A Hub on the loopback: the part of the protocol that pushing and loading need, kept in memory.

The real clients of huggingface_hub, transformers, timm and datasets talk to it over HTTP. Tests change its behaviour
through :attr:`LoopbackHub.fault` (called before each answer; what it returns is answered in place of it) and read
:attr:`LoopbackHub.requests`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, READER = "hf_owner", "hf_reader"  # the first may write, the second may not, and sees nothing private
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "other", "unknown"}
Files = dict[str, bytes]
Answer = tuple[int, object] | tuple[int, object, dict[str, str]]


class Repository:
    """Branches are names of commits, commits are files."""

    def __init__(self, kind: str, name: str, private: bool) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: Files, message: str) -> str:
        oid = secrets.token_hex(20)  # never seen before: clients keep what they have of a commit
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def at(self, revision: str) -> str | None:
        """The commit that a branch or a commit names."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class LoopbackHub:
    """Start with :meth:`start`; ``repositories[kind, name]`` is what clients have pushed."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: Files = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], Answer | None] = lambda method, path: None
        self.lock = threading.Lock()

    def start(self) -> str:
        """Serve in a thread until the process ends; the address."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        return self.address

    def files(self, name: str, revision: str = "main", kind: str = "model") -> Files:
        repository = self.repositories[kind, name]
        return repository.commits[repository.branches[revision]]

    # ---- routes: method and path to an answer ----

    def answer(self, method: str, path: str, query: dict, body: bytes, headers: Message) -> Answer:
        token = (headers["Authorization"] or "").removeprefix("Bearer ") or None
        host, accept = headers["Host"], headers["Accept"]
        if token not in (None, OWNER, READER):
            return (
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        if path == "/api/whoami-v2":
            return (200, {"name": "me", "type": "user", "orgs": []}) if token else (401, {"error": "Unauthorized"})
        if path == "/api/validate-yaml":
            return _validate(json.loads(body)["content"], as_text=accept == "text/plain")
        if path.startswith("/lfs/"):
            return self._store(method, path.removeprefix("/lfs/"), body)
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        for pattern, route in ROUTES.items():
            if match := re.fullmatch(pattern, path):
                kind, name, *rest = match.groups()
                kind = (kind or "models").rstrip("s/")
                repository = self.repositories.get((kind, name))
                if repository is None or (repository.private and token != OWNER):
                    return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
                if route in WRITING and token != OWNER:
                    return 403, {"error": "Your token has no write permission"}
                return getattr(self, route)(repository, [unquote(part or "") for part in rest], query, body, host)
        return 404, {"error": f"no route for {method} {path}"}

    def _create(self, wanted: dict, token: str | None) -> Answer:
        kind, owner = wanted.get("type", "model"), wanted.get("organization") or "me"
        name = f"{owner}/{wanted['name']}"
        if token != OWNER or owner != "me":
            return 403, {"error": f"You don't have the rights to create a {kind} under the namespace {owner}"}
        if (kind, name) in self.repositories:
            return 409, {"error": "You already created this repo", "url": f"{self.address}/{name}"}
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        self.repositories[kind, name] = Repository(kind, name, private)
        return 200, {"url": f"{self.address}/{'' if kind == 'model' else kind + 's/'}{name}", "name": name}

    def _allowed(self, repository: Repository, rest: list[str], *_: object) -> Answer:
        return 200, {}

    def _info(self, repository: Repository, rest: list[str], *_: object) -> Answer:
        oid = repository.at(rest[0] or "main")
        if oid is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        siblings = [{"rfilename": name} for name in sorted(repository.commits[oid])]
        shown = {"id": repository.name, "modelId": repository.name, "sha": oid, "private": repository.private}
        return 200, {**shown, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}

    def _tree(self, repository: Repository, rest: list[str], query: dict, *_: object) -> Answer:
        revision, folder = rest[0], rest[1].strip("/")
        oid = repository.at(revision)
        if oid is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries, folders = [], set()
        for name, content in sorted(repository.commits[oid].items()):
            if folder and not name.startswith(f"{folder}/"):
                continue
            inner = name.removeprefix(f"{folder}/") if folder else name
            parents = inner.split("/")[:-1]
            folders |= {"/".join([*([folder] if folder else []), *parents[: i + 1]]) for i in range(len(parents))}
            if recursive or not parents:
                entry = {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}
                if _is_lfs(name):
                    entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
                entries.append(entry)
        if folder and not entries and not folders:
            return 404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"}
        depth = folder.count("/") + 1 if folder else 0
        shown = [name for name in sorted(folders) if recursive or name.count("/") == depth]
        return 200, entries + [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in shown]

    def _paths(self, repository: Repository, rest: list[str], query: dict, body: bytes, host: str) -> Answer:
        wanted = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
        every = self._tree(repository, [rest[0], ""], {"recursive": ["true"]})
        return (200, [entry for entry in every[1] if entry["path"] in wanted]) if every[0] == 200 else every

    def _branch(self, repository: Repository, rest: list[str], query: dict, body: bytes, host: str) -> Answer:
        if rest[0] in repository.branches:
            return 409, {"error": "Reference already exists"}
        start = repository.at(json.loads(body or b"{}").get("startingPoint") or "main")
        repository.branches[rest[0]] = start
        return 200, {}

    def _preupload(self, repository: Repository, rest: list[str], query: dict, body: bytes, host: str) -> Answer:
        oid = repository.at(rest[0])
        if oid is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        there = repository.commits[oid]
        answers = []
        for file in json.loads(body)["files"]:
            name = file["path"]
            old = None
            if name in there:
                old = hashlib.sha256(there[name]).hexdigest() if _is_lfs(name) else _git_oid(there[name])
            mode = "lfs" if _is_lfs(name) else "regular"
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": old})
        return 200, {"files": answers}

    def _lfs_batch(self, repository: Repository, rest: list[str], query: dict, body: bytes, host: str) -> Answer:
        objects = []
        for blob in json.loads(body)["objects"]:
            href = f"http://{host}/lfs/{blob['oid']}"
            new = {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
            objects.append({**blob, **({} if blob["oid"] in self.blobs else new)})
        return 200, {"transfer": "basic", "objects": objects}

    def _store(self, method: str, path: str, body: bytes) -> Answer:
        oid = path.removesuffix("/verify")
        if method == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "the content is not what was announced"}
            self.blobs[oid] = body
        return (200, {}) if oid in self.blobs else (404, {"error": "no such object"})

    def _commit(self, repository: Repository, rest: list[str], query: dict, body: bytes, host: str) -> Answer:
        if rest[0] not in repository.branches:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        with self.lock:
            files = dict(repository.commits[repository.branches[rest[0]]])
            message = ""
            for line in map(json.loads, body.decode().splitlines()):
                key, value = line["key"], line["value"]
                if key == "header":
                    message = value["summary"]
                elif key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = self.blobs[value["oid"]]
                elif key == "deletedFile":
                    del files[value["path"]]
                else:
                    return 400, {"error": f"{key} is not understood"}
            oid = repository.commit(rest[0], files, message)
        return 200, {"commitUrl": f"{self.address}/{repository.name}/commit/{oid}", "commitOid": oid, "success": True}

    def _resolve(self, repository: Repository, rest: list[str], *_: object) -> Answer:
        oid = repository.at(rest[0])
        if oid is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        content = repository.commits[oid].get(rest[1])
        headers = {"X-Repo-Commit": oid}
        if content is None:
            return 404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"}
        etag = hashlib.sha256(content).hexdigest() if _is_lfs(rest[1]) else _git_oid(content)
        return 200, content, {**headers, "ETag": f'"{etag}"'}


# kind of repository, its name, and what follows
API = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
ROUTES = {
    rf"{API}/auth-check(?:/write)?": "_allowed",
    rf"{API}/tree/([^/]+)(/.*)?": "_tree",
    rf"{API}/paths-info/([^/]+)": "_paths",
    rf"{API}/branch/(.+)": "_branch",
    rf"{API}/preupload/(.+)": "_preupload",
    rf"{API}/commit/(.+)": "_commit",
    rf"{API}(?:/revision/(.+))?": "_info",
    r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch()": "_lfs_batch",
    r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)": "_resolve",
}
WRITING = ("_branch", "_preupload", "_commit", "_lfs_batch", "_allowed")


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, url.path))
        answer = self.hub.fault(self.command, url.path) or self.hub.answer(
            self.command, url.path, parse_qs(url.query), body, self.headers
        )
        status, content, headers = (*answer, {})[:3]
        if not isinstance(content, bytes):
            text = str(content) if isinstance(content, str) else json.dumps(content)
            content, headers = text.encode(), {"Content-Type": "application/json", **headers}
        if (wanted := self.headers.get("Range")) and status == 200:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            end = min(int(last) + 1, len(content)) if last else len(content)
            headers = {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
            status, content = 206, content[int(first) : end]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *_: object) -> None:
        """Not on standard error."""


def _validate(text: str, as_text: bool) -> Answer:
    """Some of the Hub's own checks: YAML in front, a licence it knows, strings where strings belong."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return 400, {"errors": [{"message": f"YAML: {error}"}], "warnings": []}
    errors = []
    if data.get("license", "mit") not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for key in ("library_name", "pipeline_tag", "base_model"):
        if not isinstance(data.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets"):
        if not all(isinstance(item, str) for item in data.get(key) or []):
            errors.append(f'"{key}" must be a list of strings')
    for result in (r for model in data.get("model-index", []) for r in model["results"]):
        if not result["task"].get("type") or not {"name", "type"} <= result["dataset"].keys():
            errors.append('"model-index" needs a task and a dataset with name and type')
        if not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
            errors.append('"model-index" needs a type and a value for each metric')
    if not errors:
        return 200, {"warnings": []}
    return 400, "\n".join(errors) if as_text else {"errors": [{"message": e} for e in errors], "warnings": []}


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".parquet", ".png", ".pt", ".pth"))


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
