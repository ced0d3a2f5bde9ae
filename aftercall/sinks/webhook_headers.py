"""Which headers a webhook may have besides ours."""

import re

_OURS = {"content-type", "content-length", "host", "accept-encoding"}
_OURS |= {"webhook-id", "webhook-timestamp", "webhook-signature"}
# https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1 (2026-11), and what else is agreed between two neighbours
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_HOP_BY_HOP |= {"proxy-authenticate", "proxy-authorization", "expect", "content-encoding"}
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2 (2026-11)
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?")


def check_header(name: str, value: str) -> None:
    """Raises ValueError without the value; and without a name that may hold one, as in `Authorization: Bearer …`."""
    if not _NAME.fullmatch(name):
        raise ValueError("headers: a name has letters, digits and dashes, and its value stands behind the =")
    if name.lower() in _OURS | _HOP_BY_HOP:
        raise ValueError(f"headers: {name} cannot be set here")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"headers: the value of {name} has characters that no header may have, or spaces around it")
