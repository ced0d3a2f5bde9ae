"""`python -m tests.fuzz [TARGET…] [--seconds N]`: look for input that breaks a promise, guided by coverage.

Without a target all of them are tried, each N seconds. What is found is written to `.fuzz/findings/`, and
`python -m tests.fuzz TARGET FILE…` tries it again (without atheris), to see it fail and then to see it mended. What
reached new code is kept in `.fuzz/corpus/` and is where the next run goes on. Exit: 0 nothing found, 1 found, 2 usage.
"""

import argparse
import re
import subprocess
import sys
import traceback
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".fuzz"
INPUT_TIMEOUT_S = 10


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; or a finding's file"
    )
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long to look, for each target (60)")
    options = parser.parse_args(arguments)
    names = [word for word in options.targets if word in TARGETS]
    files = [Path(word) for word in options.targets if word not in TARGETS]
    if missing := [path for path in files if not path.is_file()]:
        parser.error(f"{missing[0]} is no target and no file; there are {', '.join(TARGETS)}")
    if files and len(names) != 1:
        parser.error("name the one target that the files are for")
    found = [try_again(names[0], path) for path in files] or [fuzz(name, options.seconds) for name in names or TARGETS]
    return 1 if any(found) else 0


def try_again(name: str, path: Path) -> bool:
    """Whether the input still breaks the target."""
    try:
        TARGETS[name].check(path.read_bytes())
    except Exception:
        traceback.print_exc()
        return True
    print(f"{path}: nothing found")
    return False


def fuzz(name: str, seconds: int) -> bool:
    """Whether something was found in that time. In a process of its own, since libFuzzer ends the one it runs in."""
    corpus, findings = WORK / "corpus" / name.replace(":", "-"), WORK / "findings"
    for directory in (corpus, findings):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.engine", name, str(corpus), f"-max_total_time={seconds}",
         f"-artifact_prefix={findings}/{name.replace(':', '-')}-", f"-timeout={INPUT_TIMEOUT_S}", "-rss_limit_mb=4096",
         "-max_len=65536"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    written = [Path(path) for path in re.findall(r"Test unit written to (.+)", run.stdout)]
    executions = re.findall(r"^#(\d+)\s", run.stdout, re.MULTILINE)
    coverage = re.findall(r"\bcov: (\d+)", run.stdout)
    if not executions or (run.returncode and not written):
        print(run.stdout[-4000:], file=sys.stderr)
        print(f"{name}: could not be fuzzed (exit status {run.returncode})", flush=True)
        return True
    print(
        f"{name:<20} {int(executions[-1]):>10,} executions  {coverage[-1] if coverage else '?':>6} branches covered  "
        + ("FOUND" if written else "nothing found"),
        flush=True,
    )
    if written:
        said = run.stdout.rpartition("=== Uncaught Python exception: ===")[2].partition("\n==")[0]
        print("\n".join(f"    {line[:200]}" for line in said.strip().splitlines()[:30]))
        print(*(f"    python -m tests.fuzz {name} {path.relative_to(ROOT)}" for path in written), sep="\n", flush=True)
    return bool(written)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
