"""The provider that aftercall/providers/README.md grows, as files."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "aftercall" / "providers" / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """Name and content of each file that the README shows."""
    modules = {source.partition("\n")[0].removeprefix("# "): source for source in blocks("python")}
    fixtures = re.findall(r"^`(fixtures/[\w.]+)`:\n\n```json\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return modules | dict(fixtures)


def lay_down(folder: Path) -> None:
    for name, content in files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, "utf-8")
