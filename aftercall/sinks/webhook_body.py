"""What a webhook's body is where the user wants another one than ours."""

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery
from aftercall.templates import Template

MAX_BODY = 16_000_000  # characters that a template may make; our own: twice what a provider's webhook may have


def compiled(source: str | None) -> Template | None:
    """The template; raises ValueError that names the option."""
    try:
        return None if source is None else Template(source, names=("raw",), limit=MAX_BODY + 1)
    except ValueError as error:
        raise ValueError(f"template: {error}") from None


def body_of(delivery: Delivery, template: Template | None) -> bytes:
    """The delivery's body, or what the template makes of it."""
    if template is None:
        return delivery.body
    try:
        text = template.render(delivery.event, raw=delivery.body.decode("utf-8", "replace"))
    except ValueError as error:
        raise SinkError(str(error), permanent=True) from None
    if len(text) > MAX_BODY:
        raise SinkError("the template's text is too long", permanent=True)
    return text.encode("utf-8", "replace")
