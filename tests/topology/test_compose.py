"""docker-compose.yml and Dockerfile, checked without an engine: the specification's schema and rules of the house."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import compose
import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
SCHEMA = json.loads((ROOT / "tests/support/compose-spec.json").read_text())
RAW = compose.load(FILE)
SERVICES: dict[str, Any] = RAW["services"]
SECRETS = {reference.name for reference in compose.references(SERVICES) if reference.kind == ":?"}
EXAMPLE = (ROOT / ".env.example").read_text()
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
INSTRUCTIONS = [tuple(line.split(None, 1)) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
PINNED = re.compile(r"[\w./-]+:\d+(\.\d+)+(-[\w.]+)?")
each_service = pytest.mark.parametrize("name", SERVICES)


def problems(document: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(document)]


def test_the_schema_accepts_the_file_and_refuses_a_slip() -> None:
    filled = compose.load(FILE, dict.fromkeys(SECRETS, "x"))
    assert problems(RAW) == []
    assert problems(filled) == []
    filled["services"]["server"]["health_check"] = {}
    assert problems(filled)


def test_every_secret_is_demanded_and_none_has_a_default() -> None:
    assert sorted(SECRETS) == ["POSTGRES_PASSWORD", "PREFECT_AUTH", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"]
    for reference in compose.references(RAW):
        assert reference.kind == (":?" if reference.name in SECRETS else ":-"), reference
    complete = dict.fromkeys(SECRETS, "x")
    for secret in SECRETS:
        with pytest.raises(compose.MissingVariableError, match=secret):
            compose.load(FILE, complete | {secret: ""})


def test_no_secret_is_written_into_the_file() -> None:
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY|AUTH", name):
                assert "${" in value, name


def test_the_example_names_every_variable_and_gives_no_secret() -> None:
    given = dict(re.findall(r"^#?(\w+)=(\S*)", EXAMPLE, re.MULTILINE))
    assert given.keys() == {reference.name for reference in compose.references(RAW)}
    for reference in compose.references(RAW):
        assert given[reference.name] == ("" if reference.name in SECRETS else reference.rest)
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@each_service
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory"}


@each_service
def test_an_image_is_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    image = compose.interpolated(service["image"], {})
    assert PINNED.fullmatch(image), image
    if "build" in service:
        assert service["build"] == {"context": ".", "target": service["build"]["target"]}
        assert service["build"]["target"] in STAGES
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert not image.startswith("uwm-") or image.endswith(f":{version}")


@each_service
def test_a_service_has_a_health_check_or_ends(name: str) -> None:
    service, check = SERVICES[name], SERVICES[name]["healthcheck"]
    if service["restart"] == "no":
        assert check == {"disable": True}
        return
    assert service["restart"] == "unless-stopped"
    assert check["test"][0] == "CMD"
    assert check.keys() == {"test", "interval", "timeout", "retries", "start_period"}


@each_service
def test_dependencies_can_be_met(name: str) -> None:
    for needed, wanted in SERVICES[name].get("depends_on", {}).items():
        ends = SERVICES[needed]["restart"] == "no"
        assert wanted == {"condition": "service_completed_successfully" if ends else "service_healthy"}
        assert not SERVICES[needed].get("profiles"), f"{needed} does not always run"
    assert name in compose.in_order(SERVICES)


def test_volumes_are_declared_and_files_exist() -> None:
    filled = compose.load(FILE, dict.fromkeys(SECRETS, "x"))
    mounts = [mount.split(":") for service in filled["services"].values() for mount in service.get("volumes", ())]
    files = [mount for mount in mounts if mount[0].startswith("./")]
    assert {mount[0] for mount in mounts if mount not in files} == RAW["volumes"].keys()
    assert files
    for source, _, mode in files:
        assert (ROOT / source).is_file()
        assert mode == "ro"


def known_variables() -> set[str]:
    """Names of Prefect's settings, in a process that does not read this machine's."""
    script = """
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names
from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings as Cleanup
from prefect_redis.client import RedisMessagingSettings as Messaging
print(*_get_valid_setting_names(Settings))
for prefix, settings in (("MESSAGING", Messaging), ("WORKER_CLEANUP_QUEUE", Cleanup)):
    print(*(f"PREFECT_REDIS_{prefix}_{name.upper()}" for name in settings.model_fields))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=clean())
    return set(done.stdout.split())


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def test_every_variable_is_one_that_somebody_reads() -> None:
    pytest.importorskip("prefect_redis", reason="the extra `server` is not installed")
    given = {name for service in SERVICES.values() for name in service["environment"]}
    ours = {name for name in given if name.startswith("UWM_")}
    code = "".join(path.read_text() for path in ROOT.glob("*/*.py"))
    assert all(f'"{name}"' in code for name in ours)
    prefects = {name for name in given if name.startswith("PREFECT_")}
    assert not prefects - known_variables()
    assert {"PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_UI_V2_ENABLED"} < prefects
    assert given - ours - prefects == {
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "DO_NOT_TRACK",
        "POSTGRES_DB",
        "POSTGRES_PASSWORD",
        "POSTGRES_USER",
        "REDISCLI_AUTH",
    }


def test_addresses_name_services_and_their_ports() -> None:
    ports = {"postgres": "5432", "redis": "6379", "s3": "8333", "server": "4200"}
    found = set()
    for service in SERVICES.values():
        for value in service["environment"].values():
            found |= set(re.findall(r"(?:@|//)([a-z][\w-]*):(\d+)", value))
    assert found == {(name, ports[name]) for name in ("redis", "s3", "server")}
    server = SERVICES["server"]["environment"]
    assert (server["PREFECT_SERVER_DATABASE_HOST"], server["PREFECT_SERVER_DATABASE_PORT"]) == ("postgres", "5432")
    assert (server["PREFECT_REDIS_MESSAGING_HOST"], server["PREFECT_REDIS_MESSAGING_PORT"]) == ("redis", "6379")


def test_the_image_copies_what_exists_and_what_the_builder_is_given() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    copied = set()
    for instruction, rest in INSTRUCTIONS:
        if instruction == "COPY" and not rest.startswith("--from"):
            copied |= set(rest.split()[:-1])
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} < copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in rules
    assert not any(fnmatch(".env", rule[1:]) for rule in rules if rule.startswith("!"))


def test_the_image_installs_the_tested_set_and_runs_without_root() -> None:
    assert re.findall(r"^FROM (\S+) AS base$", DOCKERFILE, re.MULTILINE)[0].startswith("python:3.11.")
    assert all(PINNED.fullmatch(source) or source in STAGES for source in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M))
    installs = re.findall(r"pip install ([^&\n]*)", DOCKERFILE)
    assert installs
    assert all("-c constraints.txt" in install or "--no-deps" in install for install in installs)
    assert [rest for instruction, rest in INSTRUCTIONS if instruction == "USER"] == ["10001:10001"]
    assert {SERVICES[name]["user"] for name in SERVICES if "build" in SERVICES[name]} == {"10001:10001"}
    assert DOCKERFILE.index("USER 10001") < DOCKERFILE.index("FROM runtime AS gpu")


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: it is for Linux on x86-64 only")
    done = subprocess.run([program, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a${X}b", "a1b"), ("$X", "1"), ("${Y:-d}", "d"), ("${X:-d}", "1"), ("$${X}", "${X}"), ("${X:?no}", "1")],
)
def test_variables_are_filled_in_as_compose_does(text: str, expected: str) -> None:
    assert compose.interpolated(text, {"X": "1"}) == expected
