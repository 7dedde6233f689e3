"""A stand-in for the Hugging Face Hub on this machine: it keeps what huggingface_hub pushes, and serves it."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

import yaml

MODEL = r"/api/models/(?P<id>[\w-]+/[\w-]+)"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories as {id: {file: content}}; a push replaces files of the same name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.cards: list[str] = []  # that were sent for validation
        self.served: list[str] = []  # files that were read

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str) -> str:
        """A hash of the content, as git has."""
        files = self.repositories[repository]
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization')}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.endpoint}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif match := re.fullmatch(f"{MODEL}/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif match := re.fullmatch(f"{MODEL}/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[match["id"]][line["value"]["path"]] = content
            commit = self.server.commit(match["id"])
            self._json({"commitUrl": f"{self.server.endpoint}/{match['id']}/commit/{commit}", "commitOid": commit})
        else:
            self.send_error(404)

    def _validate(self, card: str) -> None:
        """Asks for what the hub asks for of a card with results."""
        self.server.cards.append(card)
        metadata = yaml.safe_load(card.split("---\n")[1])
        errors = [
            {"message": f"{key} is missing"} for key in ("license", "library_name", "tags") if not metadata.get(key)
        ]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        match = re.match(rf"{MODEL}/|/(?P<of_file>[\w-]+/[\w-]+)/resolve/", path)
        repository = match and (match["id"] or match["of_file"])
        if repository not in self.server.repositories:
            self.send_response(401)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        files, commit = self.server.repositories[repository], self.server.commit(repository)
        if "/revision/" in path:
            self._json({"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        elif "/tree/" in path:
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            )
        else:
            name = path.split("/")[-1]
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha1(files[name]).hexdigest()}"')
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            if with_body:
                self.server.served.append(name)
                self.wfile.write(files[name])

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
