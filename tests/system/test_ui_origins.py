"""Only the UI's own pages reach the UI: requests as a browser sends them for pages of others, to the server of `make ui`."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from finjepa_pipeline.ui import OriginGuard
from tests.system.product import COMMANDS, ROOT, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
JSON = {"Content-Type": "application/json"}
QUERY = '{"query": "{ version }"}'


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    home = folder / "home"
    (home / "dagster").mkdir(parents=True)
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster" / "dagster.yaml")
    (folder / "empty.py").write_text("import dagster as dg\ndefs = dg.Definitions()\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "finjepa_pipeline.ui", "--port", str(port), "-f", folder / "empty.py"],
        env=environment(home) | {"DAGSTER_HOME": str(home / "dagster"), "PATH": f"{COMMANDS}:{os.environ['PATH']}"},
        cwd=folder, stdout=(folder / "log").open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]  # noqa: PT018
            with contextlib.suppress(OSError):
                if ask(port, "POST", "/graphql", QUERY, JSON)[0] == 200:
                    break
            time.sleep(1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def test_what_a_page_of_others_can_send_is_refused(port):
    own = f"http://127.0.0.1:{port}"
    assert ask(port, "POST", "/graphql", QUERY, JSON | {"Origin": own, "Sec-Fetch-Site": "same-origin"})[0] == 200
    assert ask(port, "GET", "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link in an alert
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    refused = [
        ("POST", "/graphql", "query={version}", form | {"Origin": "https://evil.example"}),
        ("POST", "/graphql", "query={version}", form),
        ("POST", "/graphql", QUERY, {"Content-Type": "text/plain"}),
        ("POST", "/graphql", QUERY, JSON | {"Origin": "https://evil.example"}),
        ("POST", "/graphql", QUERY, JSON | {"Origin": "null"}),
        ("POST", "/graphql", QUERY, JSON | {"Origin": "http://localhost:1"}),
        ("POST", "/graphql", QUERY, JSON | {"Origin": f"{own}.evil.example"}),
        ("POST", "/graphql", QUERY, JSON | {"Sec-Fetch-Site": "cross-site"}),
        ("POST", "/graphql", QUERY, JSON | {"Host": "evil.example"}),
        ("POST", "/graphql", QUERY, JSON | {"Host": f"127.0.0.1.evil.example:{port}"}),
        ("GET", "/", None, {"Host": "evil.example"}),
        ("GET", "/graphql?query=%7Bversion%7D", None, {}),
    ]
    for request in refused:
        status, said = ask(port, *request)
        assert status == 403, request
        assert said.startswith("refused: "), request
    websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "graphql-ws"}  # fmt: skip
    assert ask(port, "GET", "/graphql", headers=websocket | {"Origin": "https://evil.example"})[0] == 403
    assert ask(port, "GET", "/graphql", headers=websocket | {"Host": "evil.example"})[0] == 403


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("finjepa.example", "https://finjepa.example", True),
        ("localhost:3000", "https://finjepa.example", True),  # a proxy that does not pass the Host on
        ("[::1]:3000", "http://[::1]:3000", True),
        ("finjepa.example", "https://evil.example", False),
        ("[", None, False),
        ("", None, False),
    ],
)
def test_the_address_of_the_operator_is_known(host, origin, passes):
    headers = [(b"host", host.encode()), (b"content-type", b"application/json")]
    headers += [(b"origin", origin.encode())] if origin else []
    scope = {"type": "http", "method": "POST", "path": "/graphql", "headers": headers}
    assert (OriginGuard(None, "https://finjepa.example/").refusal(scope) is None) is passes
