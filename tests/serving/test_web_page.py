"""The page of `darkarc serve` before any file is opened: who is let in, what is refused, what is told."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from importlib import resources
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient
from typer.testing import CliRunner

from darkarc.cli import app
from darkarc.config import ServeConfig
from darkarc.serving.web import PageServer, ServeError, read_token, server
from darkarc.serving.web.page import FILES, build, wants_table
from darkarc.serving.web.pool import WorkerPool
from darkarc.serving.web.uploads import Refused, shown_name

TOKEN = "correct horse battery staple"
HERE = "http://127.0.0.1:8000"


class RecordingPool:
    """Stands for the workers: says which files it was given, and what was in them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.facts = {"model": "model.onnx", "shape": [64, 64]}
        self.error, self.seen, self.full = error, [], False

    @contextlib.contextmanager
    def place(self):
        if self.full:
            raise Refused(503, "the page is busy")
        yield

    async def ask(self, uploads):
        self.seen = [(u.name, u.path, u.path.read_bytes() if not u.reason else u.reason) for u in uploads]
        if self.error:
            raise self.error
        return {
            "files": [
                {"name": u.name, "images": [{"line": f"{u.name}\n"}], "more": False, "rest": ""}
                for u in uploads
            ]
        }


def client(pool=None, *, base: str = HERE, limits: dict | None = None, **settings) -> TestClient:
    made = PageServer("model.onnx", ServeConfig(**limits or {}), **settings)
    page = build(made, pool or RecordingPool())
    return TestClient(page, base_url=base, raise_server_exceptions=False, follow_redirects=False)


def upload(*names: str, content: bytes = b"pixels"):
    return [("files", (name, content, "application/octet-stream")) for name in names]


@pytest.mark.parametrize(
    "base", ["http://example.org", "http://127.0.0.1.example.org:8000", "http://10.0.0.1"]
)
def test_another_name_is_not_answered(base):
    refused = client(base=base).get("/")
    assert refused.status_code == 403
    assert "--allowed-host" in refused.json()["error"]


@pytest.mark.parametrize(
    "base", [HERE, "http://localhost:8000", "http://[::1]:8000", "http://lens.example.org"]
)
def test_its_own_names_are_answered(base):
    assert client(base=base, names=("Lens.Example.Org",)).get("/").status_code == 200


def test_two_hosts_in_one_request_are_none():
    refused = client().get("/", headers=[("host", "127.0.0.1"), ("host", "example.org")])
    assert refused.status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": HERE}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": HERE}, 200),
        ({}, 200),  # no browser
        ({"Origin": "http://example.org"}, 403),
        ({"Origin": "http://127.0.0.1:8001"}, 403),  # another server of this machine
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": HERE}, 403),
    ],
)
def test_only_its_own_page_sends_files(headers, status):
    pool = RecordingPool()
    answer = client(pool).post("/api/answer", files=upload("a.npy"), headers=headers)
    assert answer.status_code == status
    assert bool(pool.seen) == (status == 200)


def test_without_the_token_nothing_is_answered():
    page = client(token=TOKEN)
    assert page.get("/api/model").status_code == 401
    assert page.post("/api/answer", files=upload("a.npy")).status_code == 401
    assert page.get("/page.js").status_code == 401
    home = page.get("/")
    assert (home.status_code, home.headers["location"]) == (303, "/login")
    assert "Token" in page.get("/login").text
    assert page.get("/api/model", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert page.get("/api/model", headers={"Cookie": f"darkarc_8000={TOKEN}"}).status_code == 401
    assert page.post("/login", data={"token": "wrong"}).status_code == 401
    assert page.post("/login", data={"token": "x" * 5000}).status_code == 413


def test_with_the_token_a_cookie_lets_in_that_is_not_the_token():
    page = client(token=TOKEN)
    answer = page.post("/login", data={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie and TOKEN.split()[0] not in cookie
    assert page.get("/api/model").status_code == 200
    other = client(token=TOKEN)  # started again: the old cookie is worth nothing
    assert other.get("/api/model", headers={"Cookie": cookie.partition(";")[0]}).status_code == 401
    assert other.get(f"/login?token={TOKEN}").status_code == 303
    bearer = client(token=TOKEN).get("/api/model", headers={"Authorization": f"Bearer {TOKEN}"})
    assert bearer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/model", "/nothing", "/page.js", "/api/answer"])
def test_every_answer_carries_the_policy(path):
    page = client()
    for answer in (page.get(path), page.post(path, headers={"Origin": "http://example.org"}), page.put(path)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/%2e%2e",
        "/%2e%2e/pool.py",
        "/..%2fpool.py",
        "/page.css/",
        "/pool.py",
        "/page.html",
        "/api/",
        "//etc/passwd",
    ],
)
def test_there_is_no_folder_to_look_into(path):
    answer = client().get(path)
    assert answer.status_code == 404
    assert answer.json() == {"error": "nothing here"}


def test_the_files_need_nothing_from_elsewhere_and_run_nothing_inline():
    folder = resources.files("darkarc.serving.web")
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        assert set(re.findall(r"\w+://[^\"'\s]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert "innerHTML" not in text and "eval(" not in text, name
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text), name
    page = client()
    assert page.get("/").text == (folder / "page.html").read_text(encoding="utf-8")
    assert page.get("/page.js").headers["content-type"].startswith("text/javascript")


def test_the_page_is_told_its_limits():
    told = client(limits={"max_files": 3, "max_file_mb": 2}).get("/api/model").json()
    assert told["limits"]["max_files"] == 3 and told["limits"]["max_file_mb"] == 2
    assert told["header"].startswith("path,p_axion")
    assert {".fits", ".fits.gz", ".npy"} <= set(told["endings"])
    assert not {".tgz", ".tar", ".tar.gz"} & set(told["endings"])


@pytest.mark.parametrize(
    ("limits", "names", "n_bytes", "said"),
    [
        ({"max_files": 2}, ("a.npy", "b.npy", "c.npy"), 10, "at most 2 files"),
        ({"max_file_mb": 0.001}, ("a.npy",), 1001, "a.npy: over 0.001 MB"),
        ({"max_request_mb": 0.003}, ("a.npy", "b.npy"), 2000, "at most 0.003 MB"),
    ],
)
def test_too_much_is_refused(limits, names, n_bytes, said):
    pool = RecordingPool()
    answer = client(pool, limits=limits).post("/api/answer", files=upload(*names, content=b"x" * n_bytes))
    assert answer.status_code == 413
    assert said in answer.json()["error"]
    assert pool.seen == []
    # and what is just allowed is not
    fewer = upload(*names[:2], content=b"x" * min(n_bytes, 1000))
    assert client(pool, limits=limits).post("/api/answer", files=fewer).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"pixels", "application/octet-stream", 415),
        (b"pixels", "multipart/form-data", 415),
        (b"pixels", "multipart/form-data; boundary=b", 400),
        (b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.npy"\r\n\r\nhalf', "b", 400),
        (b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\ntext\r\n--b--\r\n', "b", 400),
        (
            b'--b\r\nContent-Disposition: form-data; filename="' + b"a" * 5000 + b'"\r\n\r\n\r\n--b--\r\n',
            "b",
            400,
        ),
    ],
)
def test_what_is_no_upload_is_refused(content, kind, status):
    pool = RecordingPool()
    kind = "multipart/form-data; boundary=b" if kind == "b" else kind
    answer = client(pool).post("/api/answer", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]
    assert pool.seen == []


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("lens.npy", "lens.npy"),
        ("../../etc/passwd.npy", "passwd.npy"),
        ("C:\\data\\lens.npy", "lens.npy"),
        ("=HYPERLINK(1).npy", "./=HYPERLINK(1).npy"),
        ("-1.npy", "./-1.npy"),
        ("\u202eypn.npy", "ypn.npy"),
        ("a\x00b\n.npy", "ab.npy"),
        ("<b>%22&.npy", '<b>"&.npy'),
        ("/", "unnamed"),
        ("x" * 300 + ".npy", "x" * 196 + ".npy"),
    ],
)
def test_a_name_is_only_shown(sent, shown):
    assert shown_name(sent.encode()) == shown


def test_files_lie_under_names_of_our_own_and_are_gone_afterwards():
    pool = RecordingPool()
    answer = client(pool).post("/api/answer", files=upload("../../x.npy", "y.FITS", "z.exe", "w.tgz"))
    assert answer.status_code == 200
    names, paths, contents = zip(*pool.seen, strict=True)
    assert names == ("x.npy", "y.FITS", "z.exe", "w.tgz")
    assert [path.name for path in paths[:2]] == ["00000.npy", "00001.fits"]
    assert contents[:2] == (b"pixels", b"pixels")
    assert all("of unknown kind" in reason for reason in contents[2:])
    assert not paths[0].parent.exists()
    assert paths[0].parent == paths[1].parent != Path.cwd()


def test_the_table_comes_as_text_where_that_is_asked_for():
    answer = client().post("/api/answer", files=upload("a.npy", "b.npy"), headers={"Accept": "text/csv"})
    assert answer.text.splitlines()[1:] == ["a.npy", "b.npy"]
    assert answer.text.startswith("path,")


@pytest.mark.parametrize(
    ("accept", "table"),
    [
        ("text/csv", True),
        ("Text/CSV; charset=utf-8", True),
        ("text/csv, */*;q=0.1", True),
        ("text/csv, */*", True),
        ("text/*", True),
        ("application/json;q=0.5,text/csv;q=0.9", True),
        ("text/csv; header=present ; Q=0.001", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/csv", False),
        ("text/csv;q=0", False),
        ("text/csv;q=0, text/*", False),
        ("text/csv;q=0.5, application/*;q=0.6", False),
        ("text/csv;q=much", False),
        ("text/csvs", False),
    ],
)
def test_the_accept_header_is_read_as_http_defines_it(accept, table):
    answer = client().post("/api/answer", files=upload("a.npy"), headers={"Accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == ("text/csv" if table else "application/json")


def test_several_accept_headers_are_one_list():
    assert wants_table(["application/json;q=0.1", "text/csv;q=0.2"])
    assert not wants_table(["text/csv;q=0.1", "application/json;q=0.2"]) and not wants_table([])


def test_a_full_queue_says_so():
    pool = RecordingPool()
    pool.full = True
    answer = client(pool).post("/api/answer", files=upload("a.npy"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_stranger_sees_no_traceback():
    pool = RecordingPool(RuntimeError("secret place /home/someone"))
    answer = client(pool).post("/api/answer", files=upload("a.npy"))
    assert answer.status_code == 500
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert not pool.seen[0][1].parent.exists()


def test_other_methods_are_not_there():
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert client().request(method, "/api/answer").status_code == 405


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "lens.example.org"])
def test_a_network_is_served_with_a_token_only(host):
    with pytest.raises(ServeError, match=f"host {host}: without a token"):
        PageServer("model.onnx", host=host)
    assert read_token(host, None, None, {})
    with pytest.raises(ServeError, match="can be guessed"):
        PageServer("model.onnx", host=host, token="short")
    assert PageServer("model.onnx", host=host, token=TOKEN).token == TOKEN


def test_where_a_token_comes_from(tmp_path):
    assert read_token("127.0.0.1", None, None, {}) is None
    assert read_token("127.0.0.1", True, None, {}) != read_token("127.0.0.1", True, None, {})
    assert read_token("127.0.0.1", None, None, {"DARKARC_SERVE_TOKEN": f" {TOKEN}\n"}) == TOKEN
    assert read_token("127.0.0.1", False, None, {"DARKARC_SERVE_TOKEN": TOKEN}) is None
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o640)
    with pytest.raises(ServeError, match=r"others can read it \(mode 640\)"):
        read_token("127.0.0.1", None, file, {})
    file.chmod(0o600)
    assert read_token("127.0.0.1", None, file, {}) == TOKEN
    file.write_text("\n")
    with pytest.raises(ServeError, match="holds no token"):
        read_token("127.0.0.1", True, file, {})


@pytest.fixture(params=[{}], ids=[""])
def listening(monkeypatch, request):
    """A real server without workers, on the loopback: its port, and its pool."""
    monkeypatch.setattr(server, "HEADER_S", 0.4)
    pool = RecordingPool()
    limits = ServeConfig(**{"max_file_mb": 1, "max_request_mb": 1, "timeout_s": 0.7, **request.param})
    page = build(PageServer("model.onnx", limits), pool)
    config = uvicorn.Config(
        page, http=server.PatientProtocol, ws="none", lifespan="off", log_level="critical"
    )
    running = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=asyncio.run, args=(running.serve([listener]),))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield listener.getsockname()[1], pool
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def exchange(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(part)
            time.sleep(pause_s)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


POST = b"POST /api/answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"


def test_it_does_not_wait_for_ever(listening):
    port, pool = listening
    start = time.monotonic()
    assert exchange(port) == b""  # says nothing at all
    assert exchange(port, b"GET / HTTP/1.1\r\nHost: 127", b".0.0.1\r\n", pause_s=0.1) == b""  # never ends
    half = POST + b"Content-Length: 1000\r\n\r\n--b\r\n"
    assert b" 408 " in exchange(port, half).partition(b"\r\n")[0] + b" "
    assert time.monotonic() - start < 15
    assert pool.seen == []


def test_what_is_too_large_is_refused_before_it_is_sent(listening):
    port, pool = listening
    answer = exchange(port, POST + b"Expect: 100-continue\r\nContent-Length: 10000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ") and b"at most 1 MB" in answer
    assert b"100 Continue" not in answer
    # and a body that does not say how long it is, as soon as it is too long
    piece = b"20000\r\n" + b"x" * 0x20000 + b"\r\n"
    begin = b'--b\r\nContent-Disposition: form-data; name="files"; filename="big.npy"\r\n\r\n'
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(begin):x}\r\n".encode() + begin + b"\r\n"
    answer = exchange(port, head, *[piece] * 12, b"0\r\n\r\n")
    assert b" 413 " in answer.partition(b"\r\n")[0] and b"MB" in answer
    assert pool.seen == []


def part(name: str, n_bytes: int) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + b"x" * n_bytes + b"\r\n"


END = b"--b--\r\n"


@pytest.mark.parametrize(
    "listening", [{"max_files": 3, "max_request_mb": 100, "timeout_s": 60}], indirect=True
)
@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        (b"", part("big.npy", 80_000_000) + END, "big.npy: over 1 MB"),
        (b"Expect: 100-continue\r\n", part("big.npy", 80_000_000) + END, "big.npy: over 1 MB"),
        (b"", part("big.npy", 120_000_000) + END, "at most 100 MB"),
        (b"", part("a.npy", 900_000) * 90 + END, "at most 3 files"),
        (b"Transfer-Encoding: chunked\r\n", part("big.npy", 80_000_000) + END, "big.npy: over 1 MB"),
        (b"Sec-Fetch-Site: cross-site\r\n", part("big.npy", 80_000_000) + END, "another site's page"),
    ],
)
def test_who_is_still_sending_sees_why_it_was_refused(listening, headers, body, said):
    """A client that sends all it has before it reads: closed too early, it would see a reset connection."""
    port, pool = listening
    if b"chunked" in headers:
        pieces = [body[k : k + 2**20] for k in range(0, len(body), 2**20)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        headers += b"Content-Length: %d\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(POST + headers + b"\r\n")
        if b"Expect" in headers:
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert re.match(rb"HTTP/1\.1 4(13|03) ", received)
    assert re.search(said, received.decode()), received
    assert pool.seen == []


def test_a_refused_sender_is_not_read_for_ever(listening, monkeypatch):
    port, _ = listening
    monkeypatch.setattr(server, "LINGER_BYTES", 3_000_000)
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    piece, sent = b"100000\r\n" + b"x" * 0x100000 + b"\r\n", 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + b"%x\r\n%s\r\n" % (len(part("a.npy", 0)) - 2, part("a.npy", 0)[:-2]))
        with pytest.raises(OSError):
            while sent < 200:
                connection.sendall(piece)
                sent += 1
    assert 3 < sent < 60
    # and one that sends next to nothing is not waited for
    monkeypatch.setattr(server, "LINGER_S", 0.5)
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(POST + b"Sec-Fetch-Site: cross-site\r\nContent-Length: 1000\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - start < 5


def test_the_command_takes_parameters_and_options(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        "darkarc.serving.web.run_page", lambda settings, ready: started.append((settings, ready))
    )
    monkeypatch.delenv("DARKARC_SERVE_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)  # no params.yaml: the defaults count
    run = CliRunner().invoke
    assert run(app, ["serve", "m.onnx"]).exit_code == 0
    assert run(app, ["serve", "m.onnx", "-S", "serve.port=8123", "-S", "serve.workers=3"]).exit_code == 0
    words = ["--host", "0.0.0.0", "--port", "8200", "--allowed-host", "lens.example.org", "--gate", "0.7"]
    assert run(app, ["serve", "m.onnx", *words]).exit_code == 0
    plain, chosen, open_ = (settings for settings, _ in started)
    assert (plain.model, plain.host, plain.port, plain.token, plain.gate) == (
        "m.onnx",
        "127.0.0.1",
        8000,
        None,
        0.5,
    )
    assert (chosen.port, len(WorkerPool(chosen, "m.onnx")._workers)) == (8123, 3)
    assert (open_.port, open_.gate, len(open_.token)) == (8200, 0.7, 32)
    assert "lens.example.org" in open_.allowed_hosts and "0.0.0.0" not in open_.allowed_hosts
    assert open_.address == "http://lens.example.org:8200/"
    (tmp_path / "params.yaml").write_text("serve: {port: 8300}\n")
    assert run(app, ["serve", "m.onnx"]).exit_code == 0
    assert started[-1][0].port == 8300


def test_a_drawn_token_is_printed_and_a_given_one_is_not(tmp_path, monkeypatch):
    facts = {"target_name": "axion mass", "instrument": "model_iii", "sha256": "0" * 64}
    monkeypatch.setattr("darkarc.serving.web.run_page", lambda settings, ready: ready(settings, facts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DARKARC_SERVE_TOKEN", raising=False)
    drawn = CliRunner().invoke(app, ["serve", "m.onnx", "--token"]).output
    assert re.search(r"open http://127\.0\.0\.1:8000/login\?token=\S{32}; ", drawn)
    monkeypatch.setenv("DARKARC_SERVE_TOKEN", TOKEN)
    given = CliRunner().invoke(app, ["serve", "m.onnx"]).output
    assert "open http://127.0.0.1:8000/; " in given and TOKEN not in given
