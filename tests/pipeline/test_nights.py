"""When a night starts and when it does not, what is tried again, and where alerts go."""

import datetime
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import automation
from finjepa_pipeline.alerts import BY_HAND, Alert, alert_of, red_checks, send
from finjepa_pipeline.automation import nightly_schedule
from finjepa_pipeline.definitions import defs
from finjepa_pipeline.doctor import DoctorFinding, examine
from finjepa_pipeline.runs import final
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture
def home(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home").ensure()


def tick(home: Settings, instance: dg.DagsterInstance, day: str):
    with dg.build_schedule_context(
        instance=instance,
        repository_def=defs.get_repository_def(),
        scheduled_execution_time=datetime.datetime.fromisoformat(f"{day}T18:00").replace(tzinfo=NEW_YORK),
        resources={"settings": SettingsResource(home=str(home.home)), "warehouse": Warehouse.from_settings(home)},
    ) as context:
        return nightly_schedule(context)


def finished(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    instance.create_run_for_job(dg.job(name="nightly")(lambda: None), status=status)


def test_a_night_starts_on_sessions_only_and_says_why(home):
    with dg.instance_for_test() as instance:
        night = tick(home, instance, "2026-11-24")
        assert isinstance(night, dg.RunRequest)
        assert night.tags["finjepa/why"] == "the close of 2026-11-24"
        assert night.run_key == "2026-11-24T18:00:00-05:00"
        for closed in ("2026-11-26", "2026-11-28", "2026-12-25"):  # Thanksgiving, a Saturday, Christmas
            skipped = tick(home, instance, closed)
            assert isinstance(skipped, dg.SkipReason)
            assert closed in str(skipped.skip_message)


def test_a_night_without_new_prices_starts_nothing_unless_the_last_one_failed(home, monkeypatch):
    moved: list[str | None] = [None]
    monkeypatch.setattr(automation, "source_moved", lambda *_: moved[0])
    with dg.instance_for_test() as instance:
        assert isinstance(tick(home, instance, "2026-11-24"), dg.RunRequest)  # there was no night yet
        finished(instance, dg.DagsterRunStatus.SUCCESS)
        skipped = tick(home, instance, "2026-11-24")
        assert isinstance(skipped, dg.SkipReason)
        assert "no new prices" in str(skipped.skip_message)
        moved[0] = "new"
        assert isinstance(tick(home, instance, "2026-11-24"), dg.RunRequest)
        moved[0] = None
        finished(instance, dg.DagsterRunStatus.FAILURE)
        assert isinstance(tick(home, instance, "2026-11-24"), dg.RunRequest)


def test_a_source_out_of_reach_starts_the_night_that_says_so(home, monkeypatch):
    def unreachable(*_):
        raise FinJEPAError("the Hub answers 503")

    monkeypatch.setattr(automation, "source_moved", unreachable)
    with dg.instance_for_test() as instance:
        finished(instance, dg.DagsterRunStatus.SUCCESS)
        assert "503" in tick(home, instance, "2026-11-24").tags["finjepa/why"]


def test_the_config_of_a_night_is_a_file_of_the_home(home, monkeypatch):
    ear = Ear()
    monkeypatch.setenv("FINJEPA_ALERT_WEBHOOK", ear.url)
    home.nightly_config.write_text("ops: {world_model: {config: {preset: tiny}}}")
    with dg.instance_for_test() as instance:
        config = tick(home, instance, "2026-11-24").run_config
        assert config["ops"]["world_model"]["config"]["preset"] == "tiny"
        home.nightly_config.write_text("ops: {world_model: {config: {presset: tiny}}}")
        with pytest.raises(FinJEPAError, match=r"nightly\.yaml.*presset"):
            tick(home, instance, "2026-11-24")
    [alert] = ear.heard  # a person is told, as no run will
    assert alert["kind"] == "failure"
    assert "presset" in alert["text"]


def test_doctor_sees_what_would_keep_a_night_from_starting_or_ending(home, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    def found(what: str) -> DoctorFinding:
        return next(finding for finding in examine(home) if finding.what == what)

    shutil.copyfile(ROOT / "dagster.yaml", home.dagster / "dagster.yaml")
    assert all(found(what).good for what in ("instance", "nightly runs", "alerts"))
    assert not found("instance").way_out
    (home.dagster / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    home.nightly_config.write_text("ops: {world_modle: {}}")
    assert "dagster.yaml" in found("instance").way_out
    assert "world_modle" in found("nightly runs").way_out
    assert "FINJEPA_ALERT_WEBHOOK" in found("alerts").way_out


class Ear:
    """A webhook on loopback that fails a given number of times."""

    def __init__(self, failures: int = 0, status: int = 503):
        self.heard: list[dict] = []
        self.tries = 0
        ear = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                ear.tries += 1
                broken = ear.tries <= failures
                if not broken:
                    ear.heard.append(json.loads(body))
                self.send_response(status if broken else 200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/s3cret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_an_alert_reaches_the_webhook_and_the_command_or_is_reported_without_the_address(home, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    ear, file, alert = (
        Ear(failures=2),
        tmp_path / "told",
        Alert("it failed", "failure", "nightly", "run1", ("champion",), ("/runs/run1",)),
    )
    write = f"{sys.executable} -c 'import sys; open(sys.argv[1], \"w\").write(sys.stdin.read())' {file}"
    assert send(home.model_copy(update={"alert_webhook": ear.url, "alert_command": write}), alert)
    assert ear.heard == [json.loads(file.read_text())]
    assert (ear.heard[0]["text"], ear.heard[0]["failed"], ear.heard[0]["links"]) == ("it failed", ["champion"], [])
    assert send(home.model_copy(update={"alert_webhook": ear.url, "ui_url": "https://x.org"}), alert)
    assert ear.heard[1]["links"] == ["https://x.org/runs/run1"]
    assert ear.heard[1]["text"] == "it failed https://x.org/runs/run1"
    assert not send(home, alert)  # nobody listens
    deaf = Ear(failures=9, status=404)
    with pytest.raises(FinJEPAError, match="HTTPError 404") as refusal:
        send(home.model_copy(update={"alert_webhook": deaf.url}), alert)
    assert deaf.tries == 1
    assert "s3cret" not in str(refusal.value)
    with pytest.raises(FinJEPAError, match="FINJEPA_ALERT_COMMAND"):
        send(home.model_copy(update={"alert_command": "/no/such/program"}), alert)


def test_a_failed_run_is_reported_with_its_red_check_and_without_tokens():
    @dg.asset(check_specs=[dg.AssetCheckSpec("sound", asset="prices", blocking=True)])
    @final
    def prices() -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        yield dg.MaterializeResult("prices")
        yield dg.AssetCheckResult(
            passed=False, check_name="sound", asset_key="prices", description="2 days are missing",
            metadata={"page": dg.MetadataValue.url("/pages/reports/prices.html"), "days": 2},
        )  # fmt: skip

    @dg.asset
    @final
    def release() -> None:
        raise FinJEPAError("the Hub does not take hf_AbCdEf0123456789")

    with dg.DagsterInstance.ephemeral() as instance:
        checked = dg.materialize([prices], instance=instance, raise_on_error=False)
        alert = alert_of(instance, instance.get_run_by_id(checked.run_id))
        assert alert.kind == "blocking check"
        assert alert.failed == ("prices: sound",)
        assert "2 days are missing" in alert.text
        assert alert.links == (f"/runs/{checked.run_id}", "/pages/reports/prices.html")
        failed = dg.materialize([release], instance=instance, raise_on_error=False)
        alert = alert_of(instance, instance.get_run_by_id(failed.run_id))
        assert (alert.kind, alert.failed) == ("failure", ("release",))
        assert "hf_***" in alert.text
        assert "AbCdEf" not in alert.text
        by_hand = dg.materialize([release], instance=instance, raise_on_error=False, tags={BY_HAND: "command line"})
        assert alert_of(instance, instance.get_run_by_id(by_hand.run_id)) is None


def test_a_red_check_of_a_green_run_is_reported_as_well():
    @dg.asset(
        check_specs=[dg.AssetCheckSpec(name, asset="trial") for name in ("delay", "future_invariance", "coverage")]
    )
    def trial() -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        yield dg.MaterializeResult("trial")
        yield dg.AssetCheckResult(passed=True, check_name="delay")
        yield dg.AssetCheckResult(passed=False, check_name="future_invariance", description="it reads tomorrow")
        yield dg.AssetCheckResult(passed=False, check_name="coverage", severity=dg.AssetCheckSeverity.WARN)

    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize([trial], instance=instance)
        assert done.success
        run = instance.get_run_by_id(done.run_id)
        assert run is not None
        red = red_checks(instance, run)
        assert {name: found.description for name, found in red.items()} == {
            "trial: future_invariance": "it reads tomorrow"
        }
