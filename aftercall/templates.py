"""The user's own wording of a message: a Jinja template in a sandbox, which sees an event and nothing else."""

from collections.abc import Callable, Collection
from typing import Any

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aftercall.event import CallEvent
from aftercall.fields import VARIABLES, check_path

MAX_CHARACTERS = 100_000  # of a message


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field before a method of dict: `call.cost.items` are the items of the cost."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


class Template:
    """A template over `event`, `call` and `tags`, as `{{ call.agent.name }} spoke for {{ call.duration_ms|minutes }}`.

    What is null or not there is written as nothing, and has no items. `escape` is put around every value, so that
    nothing a caller said is taken for the destination's markup. `names` are what `render` is given besides; after
    `limit` characters a text is cut. Raises ValueError for what is no template, or asks about what no event has.
    """

    def __init__(
        self,
        source: str,
        escape: Callable[[str], str] | None = None,
        *,
        names: Collection[str] = (),
        limit: int = MAX_CHARACTERS,
    ) -> None:
        self._limit = limit

        def finalize(value: Any) -> str:
            text = "" if value is None else str(value)
            return escape(text) if escape else text

        environment = _Environment(
            undefined=jinja2.ChainableUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
        )
        environment.globals.clear()
        environment.filters["minutes"] = _minutes
        environment.tests["none"] = lambda value: value is None or isinstance(value, jinja2.Undefined)
        try:
            parsed = environment.parse(source)
            _check(parsed, names)
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            raise ValueError(f"not a Jinja template: {error.message}" + (f" (line {line})" if line else "")) from None
        except (RecursionError, SyntaxError, MemoryError):  # Python's compiler has its limits too
            raise ValueError("not a Jinja template: it is nested too deeply") from None

    def render(self, event: CallEvent, **more: Any) -> str:
        """The text for an event. Raises ValueError where the template cannot be applied to it."""
        plain = _known(msgspec.to_builtins(event))
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                event=plain, **{n: plain["data"][n] for n in ("call", "tags")}, **more
            ):
                pieces.append(piece)
                size += len(piece)
                if size > self._limit:
                    break
        except Exception as error:  # a template may do anything with a value that is not what it expects
            raise ValueError(f"the template cannot be applied: {type(error).__name__}") from None
        return "".join(pieces)[: self._limit]


def _known(value: Any) -> Any:
    """Without what is null: a loop over a transcript that is not known must not fail."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items() if inner is not None}
    return [_known(inner) for inner in value] if isinstance(value, list) else value


def _minutes(ms: Any) -> str:
    return "{}:{:02}".format(*divmod(int(ms) // 1000, 60)) if isinstance(ms, int | float) else ""


def _check(parsed: nodes.Template, names: Collection[str]) -> None:
    """Every name and every `call.a.b` in it is one that events have, or one of `names`."""
    own = {name.name for name in parsed.find_all(nodes.Name) if name.ctx in ("store", "param")} | {"loop", *names}
    for name in parsed.find_all(nodes.Name):
        if name.ctx == "load" and name.name not in own:
            check_path((name.name,))
    for attribute in parsed.find_all(nodes.Getattr):
        path = _path(attribute)
        if path and path[0] in VARIABLES and path[0] not in own:
            check_path(path)


def _path(node: nodes.Node) -> tuple[str, ...]:
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr) and (before := _path(node.node)):
        return (*before, node.attr)
    return ()
