"""A Hugging Face hub on loopback for tests: the folder OWNER/NAME below a root is a data set at COMMIT."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves what `datasets` and `huggingface_hub` ask for; `asked` has the paths."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.asked, self.url = root, list[str](), f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(f"{self.command} {path}")
        match path.split("/"):
            case ["api", "datasets", owner, name, "tree", _, *within]:
                folder = self.server.root / owner / name
                return self._send([self._describe(folder, p) for p in folder.joinpath(*within).glob("*")])
            case ["api", "datasets", owner, name, *_] if (self.server.root / owner / name).is_dir():
                return self._send({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []})
            case ["datasets", owner, name, "resolve", _, *within]:
                file = self.server.root.joinpath(owner, name, *within)
                if file.is_file():
                    return self._send(file.read_bytes())
        self._send(b"{}", 404, "EntryNotFound" if path.startswith("datasets") else "RepoNotFound")

    do_HEAD = do_GET

    @staticmethod
    def _describe(folder: Path, path: Path) -> dict[str, object]:
        entry: dict[str, object] = {"oid": "0" * 40, "size": 0, "path": path.relative_to(folder).as_posix()}
        return entry | ({"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size})

    def _send(self, answer: object, status: int = 200, code: str = "") -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "X-Error-Code": code}
        if status == 200 and (wanted := self.headers.get("Range", "")).startswith("bytes="):
            first, last = wanted.removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {wanted.removeprefix('bytes=')}/{len(content)}"
            content, status = content[int(first) : int(last or len(content)) + 1], 206
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
