"""What the team's server refuses, and where its secrets are."""

import configparser
from pathlib import Path

import pytest

from darkarc.tracking import TrackingError
from darkarc.tracking.server import (
    DATABASE,
    PASSWORD,
    SECRET_KEY,
    TeamServer,
    database_url,
    server_command,
    server_environment,
)

URL = "postgresql+psycopg2://mlflow:pa%24s@127.0.0.1/runs"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, f"{DATABASE} is not set"),
        ({DATABASE: "sqlite:///mlflow.db"}, "begins with 'sqlite': expected postgresql://"),
        ({DATABASE: "mysql://u:secret@host/runs"}, "begins with 'mysql'"),
    ],
)
def test_it_needs_a_postgresql(environment: dict[str, str], message: str):
    with pytest.raises(TrackingError, match=message) as refusal:
        database_url(environment)
    assert "secret" not in str(refusal.value)


def test_the_driver_is_named():
    assert database_url({DATABASE: "postgresql://mlflow:pa%24s@127.0.0.1/runs"}) == URL


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "runs.example.org"])
def test_no_login_is_for_the_loopback(host: str, tmp_path: Path):
    with pytest.raises(TrackingError, match=f"host {host}: without a login"):
        TeamServer(URL, tmp_path, host=host, login=False)
    assert "basic-auth" in server_command(TeamServer(URL, tmp_path, host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_the_loopback_the_login_can_be_off(host: str, tmp_path: Path):
    server = TeamServer(URL, tmp_path, host=host, login=False)
    assert "basic-auth" not in server_command(server)
    assert "MLFLOW_AUTH_CONFIG_PATH" not in server_environment(server, {})


def test_an_address_of_its_own_is_an_allowed_host(tmp_path: Path):
    def allowed(host: str) -> str:
        command = server_command(TeamServer(URL, tmp_path, host=host, port=5001))
        return command[command.index("--allowed-hosts") + 1]

    assert allowed("192.0.2.7") == "127.0.0.1:5001,localhost:5001,192.0.2.7:5001"
    assert allowed("0.0.0.0") == "127.0.0.1:5001,localhost:5001"


def test_passwords_are_made_once_and_are_the_owners_alone(tmp_path: Path):
    server = TeamServer(URL, tmp_path / "mlserver")
    first, second = server_environment(server, {}), server_environment(server, {})
    assert first == second
    assert len(first[PASSWORD]) > 30 and first[PASSWORD] != first[SECRET_KEY]
    for name in ("admin_password", "secret_key", "basic_auth.ini"):
        assert (server.home / name).stat().st_mode & 0o777 == 0o600
    assert server.home.stat().st_mode & 0o777 == 0o700
    login = configparser.ConfigParser()  # as MLflow reads it
    login.read(first["MLFLOW_AUTH_CONFIG_PATH"])
    assert login["mlflow"]["database_uri"] == URL
    assert "admin_password" not in login["mlflow"]


def test_a_password_that_others_can_read_is_refused(tmp_path: Path):
    (tmp_path / "admin_password").write_text("long enough, but public\n")
    (tmp_path / "admin_password").chmod(0o644)
    with pytest.raises(TrackingError, match=r"others can read it \(mode 644\); run `chmod 600"):
        server_environment(TeamServer(URL, tmp_path), {})


def test_a_short_password_is_refused_without_being_told(tmp_path: Path):
    with pytest.raises(TrackingError, match=f"{PASSWORD}: a password of 7 characters") as refusal:
        server_environment(TeamServer(URL, tmp_path), {PASSWORD: "shortpw"})
    assert "shortpw" not in str(refusal.value)


def test_it_is_a_server_and_no_client_of_another(tmp_path: Path):
    environment = server_environment(
        TeamServer(URL, tmp_path),
        {"MLFLOW_TRACKING_URI": "http://elsewhere", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert "MLFLOW_TRACKING_URI" not in environment
    assert environment["MLFLOW_BACKEND_STORE_URI"] == URL


@pytest.mark.parametrize(("change", "message"), [({"port": 80}, "port 80"), ({"permission": "ALL"}, "'ALL'")])
def test_settings_that_cannot_be(change: dict, message: str, tmp_path: Path):
    with pytest.raises(TrackingError, match=message):
        TeamServer(URL, tmp_path, **change)


def test_the_command_is_mlflows_own_with_the_database_in_the_environment(tmp_path: Path):
    server = TeamServer(URL, tmp_path, names=("runs.example.org",))
    command = server_command(server)
    assert "basic-auth" in command
    assert "runs.example.org,runs.example.org:5000" in command[command.index("--allowed-hosts") + 1]
    assert not any("pa%24s" in word for word in command)
    assert server_environment(server, {})["MLFLOW_BACKEND_STORE_URI"] == server.database
