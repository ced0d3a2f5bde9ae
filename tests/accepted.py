"""A plug-in of pytest: whatever file `settings.load` accepts in a test must fit the schema, in both dialects.

`python -m pytest -p tests.accepted …`. It counts them in the file that AFTERCALL_ACCEPTED names.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import jsonschema

from aftercall import settings
from aftercall.config_schema import config_schema

_load = settings.load
_schema = config_schema()
_validators = [jsonschema.Draft202012Validator(_schema), jsonschema.Draft7Validator(_schema)]


def load(
    environ: Mapping[str, str] = os.environ, directory: Path | None = None, *, need_redis: bool = True
) -> settings.Settings:
    loaded = _load(environ, directory, need_redis=need_redis)
    path = (directory or Path.cwd()) / (environ.get("AFTERCALL_CONFIG") or settings.DEFAULT_FILE)
    if path.exists():
        found = tomllib.loads(path.read_text("utf-8-sig"))
        for validator in _validators:
            problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(found)]
            assert not problems, f"the settings accept what the schema does not: {problems}"
        with Path(os.environ["AFTERCALL_ACCEPTED"]).open("a") as count:
            count.write("1\n")
    return loaded


settings.load = load
