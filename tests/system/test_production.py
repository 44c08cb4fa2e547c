"""The production layout of docs/how-to/deploy.md: PostgreSQL, code server, daemon and webserver as the unit files start them, and
a login before the UI; a nightly run runs on it, and what was backed up comes back."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import duckdb
import pytest
from websockets.typing import Subprotocol

from tests.system.dagster_server import DagsterClient, free_port
from tests.system.product import COMMANDS, QUICK, ROOT, wait_until, write_prices

DEPLOY = ROOT / "deploy"
POSTGRES = next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(POSTGRES is None, reason="needs Debian's postgresql"),
]
UNITS = ("finjepa-code", "finjepa-daemon", "finjepa-web")
PASSWORD = "secret-of-the-test"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A cluster on loopback with the user and the database of the docs; the address to put into DAGSTER_PG_URL."""
    pytest.importorskip("dagster_postgres")
    assert POSTGRES is not None
    folder = Path("/tmp") / f"finjepa-pg-{os.getpid()}"
    folder.mkdir(mode=0o755)
    port, password_file = free_port(), folder / "password"
    password_file.write_text(PASSWORD)
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")

    def as_postgres(command: str) -> None:
        user = ["su", "postgres", "-c"] if os.getuid() == 0 else ["sh", "-c"]
        subprocess.run([*user, f"{POSTGRES}/{command}"], check=True, capture_output=True)

    as_postgres(f"initdb -D {folder}/data -A scram-sha-256 -U postgres --pwfile={password_file}")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    as_postgres(f"pg_ctl -D {folder}/data -o '{options}' -l {folder}/log -w start")
    server = f"postgresql://{{}}:{PASSWORD}@127.0.0.1:{port}"
    try:
        admin = [POSTGRES / "psql", "-v", "ON_ERROR_STOP=1", f"{server.format('postgres')}/postgres"]
        for statement in (f"CREATE USER finjepa PASSWORD '{PASSWORD}'", "CREATE DATABASE finjepa OWNER finjepa"):
            subprocess.run([*admin, "-c", statement], check=True, capture_output=True)
        yield f"{server.format('finjepa')}/finjepa"
    finally:
        as_postgres(f"pg_ctl -D {folder}/data -m immediate stop")
        shutil.rmtree(folder)


class Production(DagsterClient):
    """The services, started by the command lines of their unit files with nothing changed but folders and ports."""

    def __init__(self, folder: Path, pg_url: str):
        self.home, self.log, self.port, code_port = folder / "home", folder / "log", free_port(), free_port()
        (self.home / "dagster").mkdir(parents=True)
        shutil.copyfile(DEPLOY / "dagster.yaml", self.home / "dagster" / "dagster.yaml")
        workspace = (DEPLOY / "workspace.yaml").read_text().replace("4266", str(code_port))
        (folder / "workspace.yaml").write_text(workspace)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("FINJEPA_", "DAGSTER_"))
        }
        places = {"/var/lib/finjepa": str(self.home), "/etc/finjepa": str(folder), "/opt/finjepa/bin": str(COMMANDS)}
        ports = {"-p 4266": f"-p {code_port}", "-p 4000": f"-p {self.port}"}
        for line in (DEPLOY / "finjepa.env").read_text().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.partition("=")
                self.environment[name] = _replaced(value, places)
        self.environment |= {
            "DAGSTER_PG_URL": pg_url.replace("postgresql:", "postgresql+psycopg2:"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.processes = []
        for unit in UNITS:
            text = (DEPLOY / "systemd" / f"{unit}.service").read_text()
            command = _replaced(re.search(r"^ExecStart=(.+)$", text, re.M)[1], places | ports)
            options = {"stdout": self.log.open("a"), "stderr": subprocess.STDOUT, "start_new_session": True}
            self.processes.append(subprocess.Popen(command.split(), env=self.environment, cwd=folder, **options))
        try:
            wait_until(self.answers, 300, lambda: self.log.read_text()[-3000:], every=1)
        except AssertionError:
            self.stop()
            raise

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _replaced(text: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def production(postgres, tmp_path_factory):
    server = Production(tmp_path_factory.mktemp("production"), postgres)
    try:
        yield server
    finally:
        server.stop()


def test_a_night_runs_on_postgres_and_its_backup_comes_back(production, postgres, tmp_path):
    prices = write_prices(tmp_path / "prices")
    ops = {
        "ingest_prices": {"data_source": "files", "path": str(prices)},
        "world_model": {"preset": "tiny", "overrides": QUICK},
        "planner_backtests": {"planner": "mppi"},
    }
    run = production.launch_job("nightly", ops)
    assert production.wait(run) == "SUCCESS", production.log.read_text()[-5000:]
    told = subprocess.run(
        [POSTGRES / "psql", postgres, "-tAc", f"SELECT status FROM runs WHERE run_id = '{run}'"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == "SUCCESS"
    assert not list((production.home / "dagster").rglob("*.db"))  # nothing of the instance is in SQLite

    archive, other = tmp_path / "backup.tar.gz", tmp_path / "other"
    for action, home in (("save", production.home), ("restore", other)):
        environment = os.environ | {"FINJEPA_HOME": str(home)}
        subprocess.run([sys.executable, DEPLOY / "backup.py", action, archive], env=environment, check=True)
    for table in ("champions", "releases", "decisions", "backtest_returns", "price_history"):
        rows = []
        for home in (production.home, other):
            with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
                rows.append(con.execute(f"FROM {table} ORDER BY ALL").fetchall())
        assert rows[0] == rows[1]
        assert rows[0] or table in ("releases", "decisions")  # of a challenger that the trial refused by chance
    assert [p.name for p in (other / "releases").iterdir()] == [
        p.name for p in (production.home / "releases").iterdir()
    ]
    assert history_restored(postgres, tmp_path / "dagster.sql").count(f"{run}|SUCCESS") == 1


def history_restored(address: str, dump: Path) -> list[str]:
    """The history of runs, dumped and read into an empty database of the same owner by the commands of the docs."""
    with dump.open("w") as out:
        subprocess.run([POSTGRES / "pg_dump", address], stdout=out, check=True)
    server, other = address.rpartition("/")[0], "other"
    admin = f"{server.replace('finjepa:', 'postgres:')}/postgres"
    subprocess.run([POSTGRES / "psql", admin, "-c", f"CREATE DATABASE {other} OWNER finjepa"], check=True)
    psql = [POSTGRES / "psql", "-v", "ON_ERROR_STOP=1", "-q", f"{server}/{other}"]
    subprocess.run([*psql, "-f", dump], check=True)
    told = subprocess.run(
        [*psql, "-tAc", "SELECT run_id, status FROM runs"], capture_output=True, text=True, check=True
    )
    return told.stdout.split()


@pytest.mark.skipif(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="needs nginx")
def test_nobody_gets_in_without_the_password(production, tmp_path):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    port, folder = free_port(), Path("/tmp") / f"finjepa-nginx-{os.getpid()}"
    folder.mkdir(mode=0o755)
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", PASSWORD], capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / "htpasswd").write_text(f"operator:{hashed}\n")
    places = {"127.0.0.1:4080": f"127.0.0.1:{port}", "127.0.0.1:4000": f"127.0.0.1:{production.port}"}
    site = _replaced((DEPLOY / "nginx.conf").read_text(), places | {"/etc/finjepa": str(folder)})
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n{site} }}\n"
    )
    process = subprocess.Popen([nginx, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)
    try:
        assert _answer(port, None) == 401
        assert _answer(port, "wrong") == 401
        assert _answer(port, PASSWORD) == 200
        assert _live(port, PASSWORD) == "connection_ack"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _live(port: int, password: str) -> str:
    """What the UI is told first over the websocket by which it listens to runs."""
    from websockets.sync.client import connect

    with connect(
        f"ws://127.0.0.1:{port}/graphql", subprotocols=[Subprotocol("graphql-ws")], additional_headers=_login(password)
    ) as socket:
        socket.send(json.dumps({"type": "connection_init", "payload": {}}))
        return json.loads(socket.recv(timeout=30))["type"]


def _login(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'operator:{password}'.encode()).decode()}"}


def _answer(port: int, password: str | None) -> int:
    """The status that a page is answered with, as soon as nginx is up."""
    headers, status = _login(password) if password else {}, []

    def answered() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.suppress(OSError):
            connection.request("GET", "/server_info", headers=headers)
            status.append(connection.getresponse().status)
        return bool(status)

    wait_until(answered, 10)
    return status[0]
