"""HubSpot: a call engagement for each call, on the timeline of the contact who has the phone number.

Delivered means that HubSpot answered the upsert with the engagement's id, and took the association. A call is
recognised by a unique property of the portal's own, which `aftercall sinks migrate` creates: every event of the call
updates the one engagement, and what comes late does not overwrite what a later event wrote (within a week).

https://developers.hubspot.com/docs/api-reference/crm-calls-v3/guide, …/search/guide and …/crm-properties-v3/guide
(2026-11). Erasing moves the engagement to the portal's recycling bin, where it can be restored for a while: the GDPR
deletion of HubSpot is one of contacts. A contact that was created here stays.
"""

from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, url_scheme
from aftercall.sinks.hubspot_api import Api, read, upserting
from aftercall.sinks.hubspot_call import BODY, HTML, properties
from aftercall.sinks.hubspot_numbers import E164, READ, filters, has_number
from aftercall.sinks.notes import alone
from aftercall.sinks.text import MessageConfig, clip, message_of, plain

CALL_TO_CONTACT = 194  # …/crm-associations-v4/guide#association-type-id-values (2026-11)
CALLER = "aftercall_phone"  # the unique property of the contacts that are created here
NOT_FOUND, CONFLICT = frozenset({404}), frozenset({409})


class Property(msgspec.Struct, rename="camel"):
    has_unique_value: bool = False


class HubSpot(Sink):
    events = ("call.settled",)  # a call is logged once

    class Config(MessageConfig, frozen=True, kw_only=True):
        token: Annotated[Secret, Meta(description="a private app's access token, which may read and write contacts")]
        base_url: Annotated[str, Meta(description="where the API is, for a proxy")] = "https://api.hubapi.com"
        id_property: Annotated[
            str, Meta(pattern=r"^[a-z][a-z0-9_]*$", description="the calls' unique property that holds our id")
        ] = "aftercall_call_id"
        contacts: Annotated[bool, Meta(description="log the call with the one contact who has the number")] = True
        create_contacts: Annotated[bool, Meta(description="create a contact where nobody has the number")] = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if url_scheme(self.base_url) not in ("http", "https"):
                raise ValueError("base_url: expected http:// or https:// and a host")
            if self.create_contacts and not self.contacts:
                raise ValueError("create_contacts: needs contacts = true")

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._options, self._template = config, message_of(config, lambda value: clip(value, BODY, HTML))
        self._api = Api(http, config.base_url, config.token, (config.id_property, CALLER))

    def render(self, delivery: Delivery) -> dict[str, Any]:
        event = delivery.event
        try:
            body = clip(plain(event), BODY, HTML) if self._template is None else self._template.render(event)
        except ValueError as error:
            raise SinkError(str(error), permanent=True) from None
        return upserting(self._options.id_property, _id(event.data.call), properties(event, clip(body, BODY)))

    async def deliver(self, delivery: Delivery) -> str:
        call, sequence = delivery.event.data.call, delivery.event.data.sequence
        body = self.render(delivery)
        async with alone(self.memory, _id(call), delivery.event):
            if int(await self.memory.get(_id(call)) or 0) > sequence:
                return "a later event of the call is there"
            engagement = await self._api.upsert("calls", body)
            await self.memory.set(_id(call), str(sequence))
        if self._options.contacts and (contact := await self._contact(call)):
            path = f"objects/calls/{engagement}/associations/contact/{contact}/{CALL_TO_CONTACT}"
            await self._api.ask("PUT", path, accept=NOT_FOUND)  # the search lags behind, and the contact may be gone
        return engagement

    async def erase(self, call: Call) -> None:
        asked = {"idProperty": self._options.id_property, "properties": [], "inputs": [{"id": _id(call)}]}
        found = await self._api.post("objects/calls/batch/read", asked)
        for engagement in found.results:
            await self._api.ask("DELETE", f"objects/calls/{engagement.id}", accept=NOT_FOUND)
        if any(error.category != "OBJECT_NOT_FOUND" for error in found.errors):
            raise SinkError("HubSpot could not look for the call")
        await self.memory.delete(_id(call))

    async def migrate(self) -> list[str]:
        done = await self._create("calls", self._options.id_property, "Call's id at aftercall")
        if self._options.create_contacts:
            done += await self._create("contacts", CALLER, "Number that aftercall created the contact for")
        return done

    async def _contact(self, call: Call) -> str | None:
        """Who called, or was called. Nobody where several have the number: any choice would be a guess."""
        number = (call.to if call.direction == "outbound" else call.from_) or ""
        if not E164.fullmatch(number):
            return None
        wanted = filters(number) | ({CALLER: number} if self._options.create_contacts else {})
        groups = [{"filters": [{"propertyName": p, "operator": "EQ", "value": v}]} for p, v in wanted.items()]
        search = {"filterGroups": groups, "properties": [*READ, CALLER], "limit": 10}
        found = (await self._api.post("objects/contacts/search", search)).results
        ids = [c.id for c in found if c.properties.get(CALLER) == number or has_number(c.properties, number)]
        if not ids and self._options.create_contacts:
            return await self._api.upsert("contacts", upserting(CALLER, number, {"phone": number}))
        return ids[0] if len(ids) == 1 else None

    async def _create(self, kind: str, name: str, label: str) -> list[str]:
        there = await self._api.ask("GET", f"properties/{kind}/{name}", accept=NOT_FOUND)
        if there.status not in NOT_FOUND:
            if not read(there.body, Property).has_unique_value:
                raise SinkError(f"the property {name} of {kind} is there, but not unique", permanent=True)
            return []
        group = {"name": "aftercall", "label": "aftercall"}
        await self._api.ask("POST", f"properties/{kind}/groups", group, accept=CONFLICT)
        made = {"name": name, "label": label, "groupName": "aftercall", "type": "string", "fieldType": "text"}
        await self._api.ask("POST", f"properties/{kind}", {**made, "hasUniqueValue": True}, accept=CONFLICT)
        return [f"created the unique property {name} of {kind}"]


def _id(call: Call) -> str:
    return f"{call.provider}/{call.account}/{call.id}"
