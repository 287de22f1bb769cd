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
        self.root, self.asked = root, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(f"{self.command} {path}")
        kind, *parts = path.split("/")
        if kind == "api" and len(parts) >= 3 and (self.server.root / parts[1] / parts[2]).is_dir():
            folder = self.server.root / parts[1] / parts[2]
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            match parts[3:]:
                case [] | ["revision", _]:
                    names = [{"rfilename": p.relative_to(folder).as_posix()} for p in files]
                    name = f"{parts[1]}/{parts[2]}"
                    return self._send_json({"id": name, "sha": COMMIT, "siblings": names, "private": False})
                case ["tree", _, *within]:
                    return self._send_json(self._list(folder, folder.joinpath(*within)))
                case ["paths-info", _]:
                    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    asked = json.loads(body)["paths"] if body.startswith(b"{") else []
                    found = [folder / name for name in asked if (folder / name).exists()]
                    return self._send_json([self._describe(folder, p) for p in found])
        elif kind == "datasets" and "resolve" in parts:
            file = self.server.root / parts[0] / parts[1] / "/".join(parts[4:])
            if file.is_file():
                return self._send(file.read_bytes())
        self._send(b'{"error": "not found"}', 404, "EntryNotFound" if kind == "datasets" else "RepoNotFound")

    do_HEAD = do_POST = do_GET

    def _list(self, folder: Path, within: Path) -> list[dict[str, object]]:
        recursive = "recursive=true" in self.path.lower()
        found = within.rglob("*") if recursive else within.glob("*")
        return [self._describe(folder, p) for p in sorted(found)]

    @staticmethod
    def _describe(folder: Path, path: Path) -> dict[str, object]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        content = path.read_bytes()
        return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}

    def _send_json(self, content: object) -> None:
        self._send(json.dumps(content).encode())

    def _send(self, content: bytes, status: int = 200, code: str = "") -> None:
        start, end = 0, len(content)
        if status == 200 and (wanted := self.headers.get("Range", "")).startswith("bytes="):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or end) + 1, end)
            status = 206
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass
