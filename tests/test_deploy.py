"""The ways to production in deploy/ say the same thing as each other and as the code. Needs no network."""

import ast
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from honcho.environ import parse_procfile

from aftercall.settings import ENVIRONMENT

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"

COMMANDS = {"web": "python -m service", "worker": "python -m workers"}
STOP_GRACE_S = 30  # the worker finishes running jobs for up to 25 s after SIGTERM, and then has to end

VALIDATORS = {
    "compose.yaml": ["--builtin-schema", "vendor.compose-spec"],
    "app.json": ["--schemafile", str(DEPLOY / "schemas/heroku-app.schema.json")],
    "render.yaml": ["--schemafile", str(DEPLOY / "schemas/render.schema.json")],
}


def load(name: str) -> dict[str, Any]:
    # JSON is YAML too
    return yaml.safe_load((DEPLOY / name).read_text())


def validate(name: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", *VALIDATORS[name], str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), without comments."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in joined.splitlines() if line.strip()]


def instructions(name: str) -> list[str]:
    return [arguments for instruction, arguments in dockerfile() if instruction == name]


def copied_into_the_image() -> list[str]:
    return [source for arguments in instructions("COPY") for source in arguments.split()[:-1]]


def healthcheck() -> list[str]:
    [arguments] = instructions("HEALTHCHECK")
    return json.loads(arguments.split(" CMD ", 1)[1])


def render_services() -> dict[str, dict[str, Any]]:
    return {service["type"]: service for service in load("render.yaml")["services"]}


def render_env(service: str) -> dict[str, dict[str, Any]]:
    return {entry["key"]: entry for entry in render_services()[service]["envVars"]}


def seconds(duration: str) -> int:
    return int(re.fullmatch(r"(\d+)s", duration)[1])


def routes_of_the_service() -> set[str]:
    """Every path that a GET handler in service/ is declared with, whether by decorator or by call."""
    routes = set()
    for file in (ROOT / "service").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "get":
                arguments = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "path")]
                routes |= {
                    constant.value
                    for argument in arguments
                    for constant in ast.walk(argument)
                    if isinstance(constant, ast.Constant) and str(constant.value).startswith("/")
                }
    return routes


def test_honcho_accepts_the_procfile() -> None:
    command = [sys.executable, "-m", "honcho", "check", "--procfile", str(ROOT / "Procfile")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_the_procfile_runs_exactly_the_two_processes() -> None:
    assert dict(parse_procfile((ROOT / "Procfile").read_text()).processes) == COMMANDS


@pytest.mark.parametrize("name", VALIDATORS)
def test_the_manifest_fits_its_schema(name: str) -> None:
    result = validate(name, DEPLOY / name)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("compose.yaml", "stop_grace_period:", "stop_grace_perod:"),
        ("app.json", '"formation":', '"formations":'),
        ("app.json", '"size": "basic"', '"size": "medium"'),
        ("render.yaml", "healthCheckPath:", "healthcheckPath:"),
        ("render.yaml", "maxShutdownDelaySeconds: 35", "maxShutdownDelaySeconds: 350"),
        ("render.yaml", "ipAllowList: []", ""),
    ],
)
def test_a_mistake_in_a_manifest_is_found(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = (DEPLOY / name).read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong))
    result = validate(name, tmp_path / name)
    assert result.returncode == 1
    assert "Schema validation errors" in result.stdout


def test_compose_runs_the_commands_of_the_procfile() -> None:
    services = load("compose.yaml")["services"]
    assert {name: " ".join(services[name]["command"]) for name in COMMANDS} == COMMANDS
    assert set(services) == {*COMMANDS, "valkey"}


def test_render_runs_the_commands_of_the_procfile() -> None:
    services = render_services()
    assert {name: services[name]["startCommand"] for name in COMMANDS} == COMMANDS
    assert set(services) == {*COMMANDS, "keyvalue"}


def test_heroku_starts_both_processes_of_the_procfile() -> None:
    formation = load("app.json")["formation"]
    assert {name: process["quantity"] for name, process in formation.items()} == {"web": 1, "worker": 1}


def test_the_image_runs_the_web_process() -> None:
    [command] = instructions("CMD")
    assert " ".join(json.loads(command)) == COMMANDS["web"]


@pytest.mark.parametrize("service", ["web", "worker", "valkey"])
def test_compose_waits_long_enough_before_it_kills(service: str) -> None:
    assert seconds(load("compose.yaml")["services"][service]["stop_grace_period"]) >= STOP_GRACE_S


@pytest.mark.parametrize("service", COMMANDS)
def test_render_waits_long_enough_before_it_kills(service: str) -> None:
    assert render_services()[service]["maxShutdownDelaySeconds"] >= STOP_GRACE_S


def variables_named_by(manifest: str) -> set[str]:
    if manifest == "compose.yaml":
        return {name for service in COMMANDS for name in load(manifest)["services"][service]["environment"]}
    if manifest == "app.json":
        return set(load(manifest)["env"])
    return {name for service in COMMANDS for name in render_env(service)}


@pytest.mark.parametrize("manifest", VALIDATORS)
def test_every_variable_of_a_manifest_is_one_that_aftercall_reads(manifest: str) -> None:
    assert variables_named_by(manifest)
    assert variables_named_by(manifest) <= set(ENVIRONMENT)


def test_the_readme_lists_every_variable_that_aftercall_reads_and_no_other() -> None:
    readme = (DEPLOY / "README.md").read_text()
    section = readme.split("## Environment variables")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", section, re.MULTILINE)) == set(ENVIRONMENT)


@pytest.mark.parametrize("service", COMMANDS)
def test_both_processes_reach_the_redis_beside_them(service: str) -> None:
    assert load("compose.yaml")["services"][service]["environment"]["REDIS_URL"].startswith("redis://valkey:6379")
    source = render_env(service)["REDIS_URL"]["fromService"]
    assert source["name"] == render_services()["keyvalue"]["name"]


def test_both_processes_on_render_have_the_same_variables() -> None:
    assert render_env("web") == render_env("worker")


def test_no_manifest_holds_a_secret() -> None:
    secrets = {name for name in ENVIRONMENT if re.search("KEY|SECRET|TOKEN|WEBHOOK_URL", name)}
    assert secrets
    for name in secrets & set(load("app.json")["env"]):
        assert "value" not in load("app.json")["env"][name]
    for name in secrets & set(render_env("web")):
        assert render_env("web")[name] == {"key": name, "sync": False}
    assert not secrets & variables_named_by("compose.yaml")


def test_compose_keeps_every_accepted_webhook_on_disk() -> None:
    manifest = load("compose.yaml")
    valkey = manifest["services"]["valkey"]
    program, *options = valkey["command"]
    assert program == "valkey-server"
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--maxmemory-policy": "noeviction",
    }
    [(volume, path)] = [entry.split(":") for entry in valkey["volumes"]]
    assert volume in manifest["volumes"]
    assert path == "/data"


def test_compose_opens_no_port_to_the_world() -> None:
    ports = {name: service.get("ports", []) for name, service in load("compose.yaml")["services"].items()}
    assert ports == {"web": ["127.0.0.1:8000:8000"], "worker": [], "valkey": []}


def test_the_key_value_store_on_render_keeps_its_data_to_itself_and_on_disk() -> None:
    store = render_services()["keyvalue"]
    assert store["maxmemoryPolicy"] == "noeviction"
    assert store["plan"] != "free"
    assert store["ipAllowList"] == []


def test_the_health_paths_of_the_manifests_are_routes_of_the_service() -> None:
    [image_path] = re.findall(r"'(/[a-z]+)'", healthcheck()[-1])
    paths = {image_path, render_services()["web"]["healthCheckPath"], load("app.json")["success_url"]}
    assert paths == {"/livez", "/readyz"}
    assert paths <= routes_of_the_service()


@pytest.fixture
def answering() -> Iterator[http.server.HTTPServer]:
    """A server that answers every GET with its `status` and remembers the paths it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.paths.append(self.path)
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.paths = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_of_the_image_believes_what_livez_answers(
    answering: http.server.HTTPServer, status: int, healthy: bool
) -> None:
    answering.status = status
    program, *arguments = healthcheck()
    assert program == "python"
    environment = {**os.environ, "PORT": str(answering.server_port), "no_proxy": "127.0.0.1"}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=30, check=False)
    assert (result.returncode == 0) is healthy
    assert answering.paths == ["/livez"]


def test_the_image_does_not_run_as_root() -> None:
    order = [instruction for instruction, _ in dockerfile()]
    [user] = instructions("USER")
    assert int(user) > 0
    assert order.index("USER") < order.index("CMD")
    assert f"--uid {user} " in instructions("RUN")[0]


def test_the_image_copies_what_exists_and_the_build_may_see_it() -> None:
    sources = copied_into_the_image()
    assert [source for source in sources if not (ROOT / source).exists()] == []
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(source.rstrip("/") for source in sources) == sorted(allowed)


def test_the_image_holds_both_processes_and_no_more_than_they_need() -> None:
    assert set(copied_into_the_image()) == {"requirements.txt", "aftercall/", "service/", "workers/"}


def test_the_image_has_the_python_that_the_platforms_take() -> None:
    version = (ROOT / ".python-version").read_text().strip()
    assert re.fullmatch(r"3\.\d+", version)  # Heroku and Render then take its newest patch release
    assert instructions("FROM") == [f"python:{version}-slim"]


def test_every_module_that_the_deployment_starts_is_there() -> None:
    texts = [(DEPLOY / "README.md").read_text(), (ROOT / "Procfile").read_text()]
    modules = {module for text in texts for module in re.findall(r"python -m ([a-z_.]+)", text)}
    assert {"service", "workers"} <= modules
    paths = {module: ROOT / module.replace(".", "/") for module in modules}
    missing = {
        module
        for module, path in paths.items()
        if not (path / "__main__.py").exists() and not path.with_suffix(".py").exists()
    }
    assert missing == set()
