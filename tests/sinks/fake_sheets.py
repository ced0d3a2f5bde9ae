"""Google's token server and one spreadsheet, as far as the sink needs them: strict, and with Google's own ideas."""

import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt

from aftercall.testing.destination import Answer, Sent

SPREADSHEET = "1sesame-Lantern_7291"
EMAIL = "aftercall@okafor-tailors.iam.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/spreadsheets"
_A1 = re.compile(r"'((?:[^']|'')+)'!([A-Z]+)?(\d+)?:([A-Z]+)?(\d+)?")
_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - a longer one takes 40 ms to read
PRIVATE_KEY = _KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
PUBLIC_KEY = _KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_file(url: str, **changes: Any) -> str:
    """The JSON that Google gives out for a service account whose tokens come from `url`."""
    key = {"type": "service_account", "project_id": "okafor-tailors", "client_email": EMAIL, "client_id": "1042"}
    key |= {"private_key_id": "key-62", "private_key": PRIVATE_KEY, "token_uri": f"{url}/token"}
    return json.dumps(key | changes)


class Formula(NamedTuple):
    """What a cell holds whose text was taken for a formula."""

    text: str


class Refused(Exception):
    def __init__(self, status: int, word: str, message: str = "") -> None:
        self.answer = Answer(status, {"error": {"code": status, "message": message, "status": word}})


class Area(NamedTuple):
    """A range of cells, from 0, ends not included."""

    top: int
    left: int
    bottom: int
    right: int


class FakeSheets:
    def __init__(self, *tabs: str) -> None:
        self.tabs: dict[str, list[list[Any]]] = {tab: [] for tab in tabs or ("Sheet1",)}
        self.shared = True
        self.good_for_s = 3599
        self.tokens: list[str] = []  # those given out that are good
        self.given = 0
        self.answer_instead: Callable[[Sent], Answer | None] = lambda _: None
        self.afterwards: Callable[[Sent], Answer | None] = lambda _: None  # an answer that gets lost

    @property
    def rows(self) -> list[list[Any]]:
        """The first tab's rows below the titles, without the empty ones."""
        return [row for row in next(iter(self.tabs.values()))[1:] if any(cell != "" for cell in row)]

    def __call__(self, sent: Sent) -> Answer:
        if (instead := self.answer_instead(sent)) is not None:
            return instead
        try:
            answer = self._grant(sent) if sent.path == "/token" else self._route(sent)
        except Refused as refused:
            return refused.answer
        return self.afterwards(sent) or answer

    # The token server

    def _grant(self, sent: Sent) -> Answer:
        assert sent.headers["content-type"] == "application/x-www-form-urlencoded"
        form = {name: value for name, [value] in parse_qs(sent.body.decode(), strict_parsing=True).items()}
        assert form.pop("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        [assertion] = form.values()
        header, claims, signed, signature = jwt._unverified_decode(assertion)  # type: ignore[no-untyped-call]
        verifier = crypt.RSAVerifier.from_string(PUBLIC_KEY)  # type: ignore[no-untyped-call]
        if not verifier.verify(signed, signature) or header != {"alg": "RS256", "typ": "JWT", "kid": "key-62"}:
            return Answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
        assert set(claims) == {"iss", "scope", "aud", "iat", "exp"}
        in_time = claims["iat"] - 60 < time.time() < claims["exp"] and claims["exp"] - claims["iat"] <= 3600
        ours = claims["aud"].endswith("/token") and claims["iss"] == EMAIL and claims["scope"] == SCOPE
        if not (in_time and ours):
            return Answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT."})
        self.given += 1
        self.tokens.append(f"ya29.sesame-{self.given}")
        return Answer(200, {"access_token": self.tokens[-1], "expires_in": self.good_for_s, "token_type": "Bearer"})

    # The spreadsheet

    def _route(self, sent: Sent) -> Answer:
        if sent.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            raise Refused(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        url = urlsplit(sent.path)
        root, _, path = url.path.partition("/values")
        if root != f"/v4/spreadsheets/{SPREADSHEET}":
            raise Refused(404, "NOT_FOUND", "Requested entity was not found.")
        if not self.shared:
            raise Refused(403, "PERMISSION_DENIED", "The caller does not have permission")
        query = parse_qs(url.query)
        body = json.loads(sent.body) if sent.body else None
        match sent.method, path:
            case "GET", ":batchGet":
                assert query["valueRenderOption"] == ["UNFORMATTED_VALUE"]
                found = [self._get(range_, query["majorDimension"] == ["COLUMNS"]) for range_ in query["ranges"]]
                return Answer(200, {"spreadsheetId": SPREADSHEET, "valueRanges": found})
            case "POST", ":batchClear":
                for range_ in body["ranges"]:
                    self._clear(range_)
                return Answer(200, {"spreadsheetId": SPREADSHEET, "clearedRanges": body["ranges"]})
            case "GET", range_:
                return Answer(200, self._get(unquote(range_[1:]), False))
            case "POST", append if append.endswith(":append"):
                assert query["insertDataOption"] == ["INSERT_ROWS"]
                written = self._append(unquote(append[1:].removesuffix(":append")), self._row(body, query))
                return Answer(200, {"spreadsheetId": SPREADSHEET, "updates": {"updatedRange": written}})
            case "PUT", range_:
                tab, area = self._area(unquote(range_[1:]))
                row = self._row(body, query)
                assert (area.bottom - area.top, area.right - area.left) == (1, len(row))
                return Answer(200, {"spreadsheetId": SPREADSHEET, "updatedRange": self._set(tab, area, row)})
        raise Refused(404, "NOT_FOUND")

    def _area(self, range_: str) -> tuple[str, Area]:
        found = _A1.fullmatch(range_)
        tab = found[1].replace("''", "'") if found else ""
        if found is None or tab not in self.tabs:
            raise Refused(400, "INVALID_ARGUMENT", f"Unable to parse range: {range_}")
        _, left, top, right, bottom = found.groups()
        ends = (int(bottom) if bottom else 10**6, _number(right) + 1 if right else 10**3)
        return tab, Area(int(top) - 1 if top else 0, _number(left) if left else 0, *ends)

    def _get(self, range_: str, by_column: bool) -> dict[str, Any]:
        tab, area = self._area(range_)
        rows = [list(row[area.left : area.right]) for row in self.tabs[tab][area.top : area.bottom]]
        if by_column:
            width = max(map(len, rows), default=0)
            rows = [list(column) for column in zip(*([*row, *[""] * (width - len(row))] for row in rows), strict=True)]
        values = _trimmed([_trimmed(row) for row in rows])
        return {"range": range_, **({"values": values} if values else {})}

    def _row(self, body: Any, query: dict[str, list[str]]) -> list[Any]:
        assert set(body) == {"values"}
        [row] = body["values"]
        assert all(isinstance(cell, str | int | float | bool) for cell in row)
        if any(isinstance(cell, str) and len(cell.encode("utf-16-le")) // 2 > 50_000 for cell in row):
            raise Refused(400, "INVALID_ARGUMENT", "Your input contains more than the maximum of 50000 characters")
        if query["valueInputOption"] == ["RAW"]:
            return list(row)
        return [Formula(cell) if isinstance(cell, str) and cell[:1] in "=+" else cell for cell in row]

    def _set(self, tab: str, area: Area, row: list[Any]) -> str:
        rows = self.tabs[tab]
        rows += [[] for _ in range(area.top + 1 - len(rows))]
        there = rows[area.top]
        there += [""] * (area.left + len(row) - len(there))
        there[area.left : area.left + len(row)] = row
        return f"'{tab}'!{_letters(area.left)}{area.top + 1}:{_letters(area.left + len(row) - 1)}{area.top + 1}"

    def _append(self, range_: str, row: list[Any]) -> str:
        """Below the last table: rows with something in them, one after the other, from the first column they use."""
        tab, area = self._area(range_)
        rows = self.tabs[tab]
        filled = [number for number, there in enumerate(rows) if any(c != "" for c in there[area.left : area.right])]
        if not filled:
            return self._set(tab, Area(0, area.left, 1, area.right), row)
        begins = next((after for before, after in reversed([*pairwise(filled)]) if after > before + 1), filled[0])
        table = [rows[number] for number in filled if number >= begins]
        left = min(next(n for n, cell in enumerate(there) if cell != "") for there in table)
        rows.insert(filled[-1] + 1, [])
        return self._set(tab, Area(filled[-1] + 1, left, filled[-1] + 2, area.right), row)

    def _clear(self, range_: str) -> None:
        tab, area = self._area(range_)
        for row in self.tabs[tab][area.top : area.bottom]:
            row[area.left : area.right] = [""] * len(row[area.left : area.right])


def _trimmed(values: list[Any]) -> list[Any]:
    while values and values[-1] in ("", []):
        values.pop()
    return values


def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number - 1


def _letters(number: int) -> str:
    text = ""
    number += 1
    while number:
        number, last = divmod(number - 1, 26)
        text = chr(65 + last) + text
    return text
