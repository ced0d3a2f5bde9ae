"""`python .ci/audit.py`: are the dependencies what they should be? Part of `make check`.

First what needs no network: every requirement is pinned, within pyproject.toml's bounds, and nothing else is installed;
no dependency of service and worker has a licence that binds who runs them. Then pip-audit asks OSV for the known
vulnerabilities of every pin. If OSV gives no answer, one line says so, and that is no failure. A vulnerability is
one, and so is an audit that does not work. Exit: 0 or 1.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OSV_URL = "https://api.osv.dev/v1/query"
FIRST_ANSWER_S = 20  # how long to wait for a service that may not be there
WHOLE_S = 300

# What `python -m venv` brings, and we ourselves.
NOT_PINNED = {"aftercall", "pip", "setuptools"}

# Licences that say what else must be given away, or who may use it at all. Who wants one decides it here, by name.
BINDING = re.compile(r"GPL|General Public|Affero|SSPL|BUSL|Business Source|Commons Clause|Proprietary|Commercial", re.I)
DECIDED: frozenset[str] = frozenset()


class Pin(NamedTuple):
    file: str
    requirement: Requirement

    @property
    def name(self) -> str:
        return str(canonicalize_name(self.requirement.name))

    @property
    def version(self) -> str:
        return str(self.requirement.specifier).removeprefix("==")

    @property
    def holds_here(self) -> bool:
        return self.requirement.marker is None or self.requirement.marker.evaluate()


# Pins


def read_pins(root: Path) -> tuple[list[Pin], list[str]]:
    """Every pin of requirements*.txt, and what in these files is none."""
    pins: list[Pin] = []
    problems: list[str] = []
    for path in sorted(root.glob("requirements*.txt")):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            text = line.partition(" #")[0].strip()
            if not text or text.startswith("#"):
                continue
            where = f"{path.name}:{number}"
            if included := re.fullmatch(r"-r\s+(requirements[\w-]*\.txt)", text):
                if not (root / included[1]).is_file():
                    problems.append(f"{where}: there is no {included[1]}")
                continue
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                problems.append(f"{where}: not a package and its version: {text}")
                continue
            if requirement.url or not re.fullmatch(r"==[^=*,]+", str(requirement.specifier)):
                problems.append(f"{where}: not an exact version: {text}; write {requirement.name}==…")
                continue
            pins.append(Pin(path.name, requirement))
    return pins, problems


def pin_problems(root: Path, pins: Iterable[Pin]) -> list[str]:
    """Where the pins disagree with each other or with pyproject.toml."""
    problems: list[str] = []
    here: dict[str, Pin] = {}
    for pin in filter(lambda pin: pin.holds_here, pins):
        other = here.setdefault(pin.name, pin)
        if other.version != pin.version:
            problems.append(f"{pin.name}: {other.version} in {other.file}, {pin.version} in {pin.file}")
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    for extra, wanted in {"": project["dependencies"], **extras}.items():
        for requirement in map(Requirement, wanted):
            name = canonicalize_name(requirement.name)
            found = [pin for pin in pins if pin.name == name and (extra or pin.file == "requirements.txt")]
            if not found:
                where = "requirements*.txt" if extra else "requirements.txt"
                problems.append(f"{name}: in pyproject.toml{f' ({extra})' if extra else ''}, and not pinned in {where}")
            problems += [
                f"{name}: {pin.version} in {pin.file} is not {requirement.specifier}, as pyproject.toml wants it"
                for pin in found
                if not requirement.specifier.contains(pin.version, prereleases=True)
            ]
    return problems


def installed_problems(installed: Mapping[str, str], pins: Iterable[Pin]) -> list[str]:
    """What is installed (name → version) without a pin, or in another version than the pinned one."""
    pinned = {pin.name: pin for pin in pins if pin.holds_here}
    problems = []
    for name, version in sorted(installed.items()):
        if name in NOT_PINNED:
            continue
        if name not in pinned:
            problems.append(f"{name} {version} is installed and nowhere pinned: add it to a requirements file")
        elif pinned[name].version != version:
            problems.append(
                f"{name} {version} is installed, {pinned[name].file} has {pinned[name].version}: make clean"
            )
    return problems


def licence_problems(there: Iterable[Distribution], pins: Iterable[Pin]) -> list[str]:
    """Dependencies of the service and the worker whose licence binds, or which name none."""
    shipped = {pin.name for pin in pins if pin.file == "requirements.txt"} - DECIDED
    problems = []
    for package in there:
        name = str(canonicalize_name(package.name))
        fields = {key: package.metadata.get_all(key) or [] for key in ("License-Expression", "License", "License-File")}
        classifiers = [line for line in package.metadata.get_all("Classifier") or [] if line.startswith("License ::")]
        said = [*fields["License-Expression"], *(text[:80] for text in fields["License"]), *classifiers]
        words = "; ".join(said) or ("a file" if fields["License-File"] else "")
        if name in shipped and (not words or BINDING.search(words)):
            problems.append(f"{name}: its licence is {words or 'not named'}: choose another package, or decide it here")
    return problems


# Known vulnerabilities


class Verdict(NamedTuple):
    """`outcome`: "clean"; "vulnerable"; "unasked", because the service gave no answer; "broken", for all else."""

    outcome: str
    lines: list[str]


# What requests raises when the service is not there, or something else stands in its place.
NO_ANSWER = re.compile(
    r"^requests\.exceptions\.(?:\w*ConnectionError|\w*Timeout|ProxyError|SSLError|ChunkedEncodingError"
    r"|ContentDecodingError|TooManyRedirects|JSONDecodeError): (?P<why>.*)"
    r"|^requests\.exceptions\.HTTPError: (?P<status>(?:403|407|408|429|5\d\d) .*)"
    r"|^ERROR:pip_audit\._cli:(?P<said>Could not connect to .*)",
    re.MULTILINE,
)


def judge(exit_status: int, output: str, errors: str) -> Verdict:
    """What pip-audit's answer (`--format json`) means."""
    try:
        audited = json.loads(output)["dependencies"]
        vulnerable = [
            f"{package['name']} {package['version']}: {found['id']}{_mended(found['fix_versions'])}"
            for package in audited
            for found in package.get("vulns", ())
        ]
        skipped = [f"{package['name']}: {package['skip_reason']}" for package in audited if "skip_reason" in package]
    except (ValueError, KeyError, TypeError):
        audited, vulnerable, skipped = [], [], []
    if vulnerable:
        return Verdict("vulnerable", vulnerable)
    if skipped:
        return Verdict("broken", skipped)
    if exit_status == 0 and audited:
        return Verdict("clean", [f"{len(audited)} packages"])
    *_, last = re.findall(r"^[\w.]+(?:Error|Exception|Timeout|Redirects)\b.*", errors, re.MULTILINE) or [""]
    service_failed = last.startswith(("requests.", "pip_audit._service.interface.ServiceError")) or not last
    if exit_status == 1 and service_failed and (no_answer := NO_ANSWER.search(errors)):
        why = next(filter(None, no_answer.groups()), "")
        return Verdict("unasked", [why.rpartition("(Caused by ")[2].strip()[:200]])
    return Verdict("broken", [f"exit status {exit_status}", *errors.strip().splitlines()[-5:]])


def _mended(versions: list[str]) -> str:
    return f" (mended in {', '.join(versions)})" if versions else " (not mended yet)"


def ask(pins: Iterable[Pin], osv_url: str, limit_s: float) -> Verdict:
    """pip-audit's verdict on these pins."""
    with tempfile.TemporaryDirectory() as directory:
        wanted = Path(directory) / "requirements.txt"
        wanted.write_text("".join(sorted({f"{pin.name}=={pin.version}\n" for pin in pins})))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(wanted), "--no-deps", "--disable-pip"]
        command += ["--vulnerability-service", "osv", "--osv-url", osv_url, "--timeout", "10"]
        command += ["--format", "json", "--progress-spinner", "off", "--cache-dir", directory]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        except subprocess.TimeoutExpired:
            return Verdict("unasked", [f"no answer within {limit_s:g} s"])
    return judge(done.returncode, done.stdout, done.stderr)


def vulnerabilities(pins: list[Pin], osv_url: str, first_answer_s: float = FIRST_ANSWER_S) -> Verdict:
    """The verdict on all pins; one alone is asked for first, so that a service that is not there costs little time."""
    first = ask(pins[:1], osv_url, first_answer_s)
    return ask(pins, osv_url, WHOLE_S) if first.outcome in ("clean", "vulnerable") else first


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="where the requirements files are")
    parser.add_argument("--osv-url", default=OSV_URL, help="the service to ask; default: %(default)s")
    options = parser.parse_args(arguments)
    pins, problems = read_pins(options.root)
    there = list(distributions())
    problems += pin_problems(options.root, pins)
    problems += installed_problems({str(canonicalize_name(one.name)): one.version for one in there}, pins)
    problems += licence_problems(there, pins)
    outcome, lines = vulnerabilities([pin for pin in pins if pin.holds_here], options.osv_url)
    if outcome == "clean":
        print(f"audit: no known vulnerability in {lines[0]}")
    elif outcome == "unasked":
        print(f"audit: known vulnerabilities were NOT looked up, since {options.osv_url} gave no answer: {lines[0]}")
    else:
        what = "a known vulnerability" if outcome == "vulnerable" else "pip-audit failed"
        problems += [f"{what}: {line}" for line in lines]
    for problem in problems:
        print(f"audit: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
