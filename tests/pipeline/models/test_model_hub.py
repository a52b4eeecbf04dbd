"""Hub ids, against a small server that speaks the two calls the hub client makes."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest

from pipeline.models import ModelError, ModelNotFound, hub, load_tokenizer, pull, resolve, verify
from schemas.settings import Settings

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Serves one repository, ``owner/tiny``, from a folder, and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        names = [file.name for file in sorted(self.server.folder.iterdir())]
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith(f"/owner/tiny/resolve/{COMMIT}/"):
            name = path.rsplit("/", 1)[1]
            data = (self.server.folder / name).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {"ETag": f'"{sha256}"', "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            if body:
                self.server.asked.append(name)
        elif "/tree/" in path:
            listed = [{"type": "file", "path": name, "size": self._size(name), "oid": "0" * 40} for name in names]
            data = json.dumps(listed).encode()
        elif path.startswith("/api/models/owner/tiny"):
            files = [{"rfilename": name} for name in names]
            data = json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": files}).encode()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _size(self, name: str) -> int:
        return (self.server.folder / name).stat().st_size

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def served(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny model, which also has files that must never be fetched."""
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    (folder / "consolidated.safetensors").write_bytes(b"a second copy")
    server = Hub(folder)
    _point_to(server.url, tmp_path / "hub", monkeypatch)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _point_to("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)


def _point_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def test_pull_takes_what_is_needed_and_no_code(served: Hub, settings: Settings) -> None:
    seen: list[tuple[int, int]] = []
    ref = pull("owner/tiny", settings, progress=lambda done, total: seen.append((done, total)))
    assert set(served.asked) == {path.name for path in ref.folder.iterdir()}
    assert not {"modeling_evil.py", "pytorch_model.bin", "consolidated.safetensors"} & set(served.asked)
    assert ref.digest == resolve(str(served.folder), settings).digest
    assert seen[-1][0] == seen[-1][1] > 0


def test_second_time_needs_no_hub(
    served: Hub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = resolve("owner/tiny", settings)
    _point_to("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)
    assert resolve("owner/tiny", settings) == ref
    assert load_tokenizer("owner/tiny", settings).eos_token == "<|im_end|>"
    assert verify("owner/tiny", settings).state == "ready"


def test_tokenizer_alone_leaves_the_weights_there(served: Hub, settings: Settings) -> None:
    assert load_tokenizer("owner/tiny", settings).encode("a mill")
    assert "model.safetensors" not in served.asked
    resolve("owner/tiny", settings)
    assert "model.safetensors" in served.asked


def test_verify_finds_a_changed_byte(served: Hub, settings: Settings) -> None:
    weights = (resolve("owner/tiny", settings).folder / "model.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    status = verify("owner/tiny", settings)
    assert (status.state, "model.safetensors is not what the hub gave" in status.detail) == ("damaged", True)


def test_half_a_download_is_not_a_model(served: Hub, settings: Settings) -> None:
    (resolve("owner/tiny", settings).folder / "model.safetensors").unlink()
    assert hub.find("owner/tiny") is None
    assert resolve("owner/tiny", settings).folder.joinpath("model.safetensors").is_file()


def test_only_pickles_on_the_hub(served: Hub, settings: Settings) -> None:
    (served.folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors weights on the hub"):
        resolve("owner/tiny", settings)


def test_unknown_id(served: Hub, settings: Settings) -> None:
    with pytest.raises(ModelNotFound, match="owner/nothing is not whole in this machine's hub cache"):
        resolve("owner/nothing", settings)
    assert verify("owner/nothing", settings).state == "missing"


@pytest.mark.usefixtures("offline")
def test_offline_says_what_to_do(settings: Settings, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="fetch it elsewhere and name its folder") as caught:
        resolve("owner/tiny", settings)
    assert "contextmill models pull owner/tiny" in str(caught.value)
    shutil.copytree(folder, tmp_path / "hub" / "models--owner--tiny" / "snapshots" / COMMIT)
    refs = tmp_path / "hub" / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert resolve("owner/tiny", settings).digest == resolve(f"owner/tiny@{COMMIT}", settings).digest


def test_forms_of_an_id() -> None:
    assert all(hub.is_id(name) for name in ("Qwen/Qwen2.5-0.5B", "a/b@v1.0", "a/b@refs/pr/1"))
    assert not any(
        hub.is_id(name) for name in ("gpt2", "/etc/passwd", "../a", "a/../b", "a/b/c", "a/b@", "~/x", "a/b@../x")
    )
