"""Fixtures hold exact bytes, and say where their shapes are from."""

import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDERS = [*sorted((HERE / "fixtures").iterdir()), HERE / "plugins/aftercall_elevenlabs/fixtures"]
every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(HERE)))


@every_folder
def test_every_fixture_has_its_source_named(folder: Path) -> None:
    text = (folder / "SOURCES.md").read_text()
    named = dict(re.findall(r"^\| `([\w.]+)` \| (https://\S+)", text, re.MULTILINE))
    assert set(named) == {path.name for path in folder.glob("*.json")}
    assert re.search(r"\(20\d\d-\d\d\)", text), "say when it was read"


@every_folder
def test_a_body_is_written_as_its_vendor_writes_it(folder: Path) -> None:
    """Compact and without an end of line, as JSON.stringify and its like do: signatures are over these bytes."""
    for path in folder.glob("*.json"):
        body = path.read_bytes()
        if path.name != "vectors.json":
            assert body == body.strip(), path.name
            assert b"\n" not in body, path.name
            assert (
                len(json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode()) <= len(body) + 40
            )


@every_folder
def test_the_numbers_are_kept_for_fiction(folder: Path) -> None:
    for path in folder.glob("*.json"):
        for number in re.findall(r"\+1\d{10}", path.read_text()):
            assert number.startswith("+155501"), f"{path.name}: {number}"
