"""The files of deploy/: what can be held without a container engine."""

from __future__ import annotations

import re
import subprocess

import imports
import yaml

DEPLOY = imports.REPOSITORY / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text()
SERVICES = yaml.safe_load(COMPOSE)["services"]
CREDENTIALS = {"PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def example() -> dict[str, str]:
    lines = [line for line in (DEPLOY / "backends.env.example").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_every_image_is_pinned_to_a_version() -> None:
    base = re.search(r"^FROM (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    for image in [base[1], *(service["image"] for service in SERVICES.values())]:
        assert re.fullmatch(r"[a-z/]+:\d+(\.\d+)+(-[a-z-]+)?", image), image


def test_credentials_come_from_the_environment_file_alone() -> None:
    """Compose refuses to start without them, the example names them without values, and git ignores the filled copy."""
    assert example() == dict.fromkeys(CREDENTIALS, "")
    assert set(re.findall(r"\$\{(\w+)", COMPOSE)) == CREDENTIALS
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY", name):
                assert re.fullmatch(r"\$\{(\w+):\?[^}]+\}", value), name
    ignored = ["git", "check-ignore", "--quiet", "deploy/backends.env"]
    assert subprocess.run(ignored, cwd=imports.REPOSITORY, check=False).returncode == 0


def test_nothing_is_published_beyond_the_hosts_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_each_tool_has_a_database_of_its_own() -> None:
    made = set(re.findall(r"CREATE DATABASE (\w+);", (DEPLOY / "databases.sql").read_text()))
    assert made == {"mlflow", "prefect", "perfusion"}
    assert set(re.findall(r"@postgres/(\w+)", COMPOSE)) == made
