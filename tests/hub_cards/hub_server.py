"""A Hub on this machine: as much of its HTTP interface as huggingface_hub needs to make, fill and read a repository.

Files named .safetensors take the way of large files (LFS batch, PUT, verify), all others stand in the commit.
Paths and fields: huggingface_hub's own requests (`hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`).
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_secretofthistest"
ROOT = Path(__file__).resolve().parents[2]
_COMMIT = "a" * 40


class Hub:
    """What the server was given.

    Attributes:
        repositories: id, of a Space after "spaces/" -> {"private": bool, "sdk": of a Space, "variables": of a Space,
            "files": {path: bytes}, "large": set of paths}.
        requests: (method, path) in their order.
    """

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.verified: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.endpoint = ""


@contextmanager
def running_hub():
    """Run a `Hub` on a free port of this machine; its `endpoint` is for HF_ENDPOINT."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(code, argument, home, hub):
    """Run code in a process of its own that finds this Hub, logged in there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    (home / "hf").mkdir(exist_ok=True)
    (home / "hf" / "token").write_text(TOKEN)
    kept |= {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(argument)], cwd=home, env=kept, capture_output=True, text=True, timeout=500
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._serve()

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def do_PUT(self):
        self._serve()

    def _serve(self):
        path = self.path.split("?")[0]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json(401, {"error": "Invalid username or password."})
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command.replace("HEAD", "GET") and match:
                return answer(self, *match.groups())
        return self._json(404, {"error": "Not found"})

    def _whoami(self):
        self._json(200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def _create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if asked.get("type") == "space":
            name = f"spaces/{name}"
        is_new = name not in self.hub.repositories
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        new = {"private": private, "sdk": asked.get("sdk"), "variables": {}, "files": {}, "large": set()}
        self.hub.repositories.setdefault(name, new)
        self._json(200 if is_new else 409, {"name": name, "id": name, "url": f"{self.hub.endpoint}/{name}"})

    def _set_variable(self, name):
        asked = json.loads(self.body)
        variables = self.hub.repositories[name]["variables"]
        variables[asked["key"]] = asked["value"]
        self._json(200, {key: {"value": value} for key, value in variables.items()})

    def _validate_card(self):
        self._json(200, {"errors": [], "warnings": []})

    def _preupload(self, name, revision):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json(200, {"files": files})

    def _batch(self, name):
        def entry(wanted):
            links = {
                "upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"},
                "verify": {"href": f"{self.hub.endpoint}/verify"},
            }
            return {**wanted, "actions": links}

        objects = [entry(wanted) for wanted in json.loads(self.body)["objects"]]
        self._json(200, {"transfer": "basic", "objects": objects})

    def _put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._json(400, {"error": "other bytes than announced"})
        self.hub.objects[oid] = self.body
        return self._json(200, {})

    def _verify(self):
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            return self._json(400, {"error": "not uploaded"})
        self.hub.verified.add(wanted["oid"])
        return self._json(200, {})

    def _commit(self, name, revision):
        repository = self.hub.repositories[name]
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.verified:
                    return self._json(400, {"error": f"{value['path']} was not uploaded"})
                repository["files"][value["path"]] = self.hub.objects[value["oid"]]
                repository["large"].add(value["path"])
        url = f"{self.hub.endpoint}/{name}/commit/{_COMMIT}"
        return self._json(200, {"commitUrl": url, "commitOid": _COMMIT, "pullRequestUrl": None})

    def _info(self, name, revision=None):
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": path} for path in sorted(repository["files"])]
        fields = {"id": name, "modelId": name, "sha": _COMMIT, "private": repository["private"], "siblings": siblings}
        return self._json(200, {**fields, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, name, revision, folder):
        files = self.hub.repositories[name]["files"] if name in self.hub.repositories else {}
        inside = {path: data for path, data in files.items() if path.startswith((folder or "").strip("/"))}
        if folder and not inside:
            return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        rows = [{"type": "file", "path": path, "size": len(data), "oid": "b" * 40} for path, data in inside.items()]
        return self._json(200, rows)

    def _file(self, name, revision, path):
        data = self.hub.repositories.get(name, {"files": {}})["files"].get(path)
        if data is None:
            return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": _COMMIT}
        return self._send(200, data, {**headers, "Content-Type": "application/octet-stream"})

    def _json(self, status, value, headers=None):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status, data, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


# A Space's name begins with "spaces/" everywhere; a model's is preceded by "models/" in the API alone.
_NAME = r"((?:spaces/)?[\w.-]+/[\w.-]+)"
_API = rf"/api/(?:models/|(?=spaces/)){_NAME}"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler._whoami),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._validate_card),
    ("POST", rf"{_API}/preupload/(\w+)", _Handler._preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/lfs/(\w+)", _Handler._put),
    ("POST", r"/verify", _Handler._verify),
    ("POST", rf"{_API}/commit/(\w+)", _Handler._commit),
    ("POST", rf"{_API}/variables", _Handler._set_variable),
    ("GET", _API, _Handler._info),
    ("GET", rf"{_API}/revision/(\w+)", _Handler._info),
    ("GET", rf"{_API}/tree/(\w+)(/.*)?", _Handler._tree),
    ("GET", rf"/{_NAME}/resolve/(\w+)/(.+)", _Handler._file),
]
