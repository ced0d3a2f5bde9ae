"""A HubSpot portal as far as the sink needs it: it checks what it is sent as HubSpot documents it, and keeps it."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from aftercall.testing.destination import Answer, Sent

TOKEN = "pat-eu1-sesame-7291"
STATUSES = {
    *("BUSY", "CALLING_CRM_USER", "CANCELED", "COMPLETED", "CONNECTING", "FAILED", "IN_PROGRESS", "NO_ANSWER"),
    *("QUEUED", "RINGING"),
}
OF_CALLS = {
    *("hs_timestamp", "hs_call_title", "hs_call_body", "hs_call_status", "hs_call_direction", "hs_call_duration"),
    *("hs_call_from_number", "hs_call_to_number", "hs_call_recording_url"),
}
OF_CONTACTS = {
    *("phone", "mobilephone", "hs_calculated_phone_number", "hs_calculated_mobile_number"),
    *("hs_searchable_calculated_phone_number", "hs_searchable_calculated_mobile_number"),
}


class Refused(Exception):
    def __init__(self, status: int, category: str, message: str = "", **more: Any) -> None:
        self.answer = Answer(status, {"status": "error", "category": category, "message": message, **more})


class FakeHubSpot:
    def __init__(self, *unique: tuple[str, str]) -> None:
        self.objects: dict[str, dict[str, dict[str, str]]] = {"calls": {}, "contacts": {}}
        self.bin: dict[str, dict[str, str]] = {}
        self.associations: set[tuple[str, str]] = set()
        self.groups: set[tuple[str, str]] = {("contacts", "contactinformation")}
        self.properties = {"calls": dict.fromkeys(OF_CALLS, False), "contacts": dict.fromkeys(OF_CONTACTS, False)}
        for kind, name in unique:
            self.properties[kind][name] = True
        self.partial: dict[str, Any] | None = None  # the error of the 207 that upserts are answered with
        self.answer_instead: Callable[[Sent], Answer | None] = lambda _: None
        self._last = 5_000

    @property
    def calls(self) -> list[dict[str, str]]:
        return list(self.objects["calls"].values())

    def add(self, kind: str, **properties: str) -> str:
        self._last += 1
        self.objects[kind][str(self._last)] = properties
        return str(self._last)

    def __call__(self, sent: Sent) -> Answer:
        if (instead := self.answer_instead(sent)) is not None:
            return instead
        try:
            return self._route(sent)
        except Refused as refused:
            return refused.answer

    def _route(self, sent: Sent) -> Answer:
        if sent.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "INVALID_AUTHENTICATION", "Authentication credentials not found.")
        body = self._body(sent)
        path = urlsplit(sent.path).path.removeprefix("/crm/v3/").split("/")
        match sent.method, path:
            case "POST", ["objects", kind, "batch", "upsert"]:
                return self._upsert(kind, body)
            case "POST", ["objects", "calls", "batch", "read"]:
                return self._read(body)
            case "POST", ["objects", "contacts", "search"]:
                return self._search(body)
            case "DELETE", ["objects", "calls", id_]:
                self.bin[id_] = self._object("calls", id_)
                del self.objects["calls"][id_]
                return Answer(204)
            case "PUT", ["objects", "calls", call, "associations", "contact", contact, "194"]:
                self._object("calls", call), self._object("contacts", contact)
                self.associations.add((call, contact))
                return Answer(200, {"id": call, "properties": {}})
            case "GET", ["properties", kind, name]:
                if name not in self.properties[kind]:
                    raise Refused(404, "OBJECT_NOT_FOUND")
                return Answer(200, {"name": name, "hasUniqueValue": self.properties[kind][name]})
            case "POST", ["properties", kind, "groups"]:
                return self._create_group(kind, body)
            case "POST", ["properties", kind]:
                return self._create_property(kind, body)
        raise Refused(404, "OBJECT_NOT_FOUND", f"no route {sent.method} {path}")

    def _body(self, sent: Sent) -> Any:
        if sent.method in ("GET", "DELETE", "PUT"):
            assert sent.body == b""
            return None
        if sent.headers.get("content-type") != "application/json":
            raise Refused(415, "VALIDATION_ERROR")
        return json.loads(sent.body)

    def _object(self, kind: str, id_: str) -> dict[str, str]:
        if id_ not in self.objects[kind]:
            raise Refused(404, "OBJECT_NOT_FOUND")
        return self.objects[kind][id_]

    def _is_unique(self, kind: str, name: str) -> None:
        if not self.properties[kind].get(name):
            raise Refused(
                400,
                "VALIDATION_ERROR",
                f"Unable to perform update/upsert by non-unique 0-48 property {name} in portal ID 21939747",
            )

    def _upsert(self, kind: str, body: Any) -> Answer:
        [given] = body["inputs"]
        assert set(given) == {"id", "idProperty", "properties"}
        self._is_unique(kind, given["idProperty"])
        self._validate(kind, given["properties"])
        if self.partial is not None:
            return Answer(207, {"status": "COMPLETE", "results": [], "numErrors": 1, "errors": [self.partial]})
        unique = {given["idProperty"]: given["id"]}
        found = [id_ for id_, known in self.objects[kind].items() if unique.items() <= known.items()]
        if not found and kind == "calls" and "hs_timestamp" not in given["properties"]:
            raise Refused(400, "VALIDATION_ERROR", "hs_timestamp is required")
        id_ = found[0] if found else self.add(kind)
        self.objects[kind][id_] |= given["properties"] | unique
        result = {"id": id_, "new": not found, "archived": False, "properties": self.objects[kind][id_]}
        return Answer(200, {"status": "COMPLETE", "results": [result]})

    def _validate(self, kind: str, properties: dict[str, str]) -> None:
        checks = {
            "hs_timestamp": lambda value: value.isdigit() or bool(datetime.fromisoformat(value).tzinfo),
            "hs_call_status": STATUSES.__contains__,
            "hs_call_direction": {"INBOUND", "OUTBOUND"}.__contains__,
            "hs_call_duration": str.isdigit,
            "hs_call_recording_url": lambda value: re.fullmatch(r"https://[^\s/]+/\S*", value) is not None,
        }
        for name, value in properties.items():
            if name not in self.properties[kind]:
                raise Refused(
                    400, "VALIDATION_ERROR", f'Property "{name}" does not exist', error="PROPERTY_DOESNT_EXIST"
                )
            size = len(value.encode("utf-16-le")) // 2
            if size > 65_536 or not checks.get(name, lambda _: True)(value):
                raise Refused(400, "VALIDATION_ERROR", f"Property values were not valid: {name} {value[:100]}")

    def _read(self, body: Any) -> Answer:
        self._is_unique("calls", body["idProperty"])
        [wanted] = [given["id"] for given in body["inputs"]]
        found = [id_ for id_, known in self.objects["calls"].items() if known.get(body["idProperty"]) == wanted]
        if found:
            return Answer(200, {"status": "COMPLETE", "results": [{"id": id_, "properties": {}} for id_ in found]})
        error = {"status": "error", "category": "OBJECT_NOT_FOUND", "context": {"ids": [wanted]}}
        return Answer(207, {"status": "COMPLETE", "results": [], "numErrors": 1, "errors": [error]})

    def _search(self, body: Any) -> Answer:
        groups = [group["filters"] for group in body["filterGroups"]]
        assert len(groups) <= 5
        assert all(set(each) == {"propertyName", "operator", "value"} for group in groups for each in group)
        for each in (each for group in groups for each in group):
            if each["propertyName"] not in self.properties["contacts"]:
                raise Refused(400, "VALIDATION_ERROR", f"There is no property {each['propertyName']}")
        results = [
            {"id": id_, "properties": {name: known.get(name) for name in body["properties"] if name in known}}
            for id_, known in self.objects["contacts"].items()
            if any(all(known.get(each["propertyName"]) == each["value"] for each in group) for group in groups)
        ]
        return Answer(200, {"total": len(results), "results": results[: body["limit"]]})

    def _create_group(self, kind: str, body: Any) -> Answer:
        if (kind, body["name"]) in self.groups:
            raise Refused(409, "OBJECT_ALREADY_EXISTS")
        self.groups.add((kind, body["name"]))
        return Answer(201, body)

    def _create_property(self, kind: str, body: Any) -> Answer:
        assert set(body) == {"name", "label", "groupName", "type", "fieldType", "hasUniqueValue"}
        assert (body["type"], body["fieldType"]) == ("string", "text")
        if (kind, body["groupName"]) not in self.groups:
            raise Refused(400, "VALIDATION_ERROR", "no such group")
        if body["name"] in self.properties[kind]:
            raise Refused(409, "OBJECT_ALREADY_EXISTS")
        self.properties[kind][body["name"]] = body["hasUniqueValue"]
        return Answer(201, body)
