"""Which contact has a phone number: HubSpot indexes numbers without their country code, and people type them freely."""

import re
from collections.abc import Mapping

E164 = re.compile(r"\+[1-9]\d{6,14}")

# Country codes: https://www.itu.int/pub/T-SP-E.164D (2026-11).
_COUNTRY = re.compile(r"\+([17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|\d{3})")
# HubSpot's own reading of a number (with the country of the contact), and what was typed where it has none.
_KINDS = (("hs_calculated_phone_number", "phone"), ("hs_calculated_mobile_number", "mobilephone"))
READ = tuple(name for kind in _KINDS for name in kind)


def national(number: str) -> str:
    """A number such as +15550100142 without its country code: 5550100142."""
    return _COUNTRY.sub("", number, count=1)


def has_number(contact: Mapping[str, str | None], number: str) -> bool:
    """Whether one of the contact's numbers is this one. A number typed without a country is taken to be of it."""
    known = {re.sub(r"\D", "", contact.get(ours) or contact.get(typed) or "").lstrip("0") for ours, typed in _KINDS}
    return bool(known & {number[1:], national(number).lstrip("0")})


def filters(number: str) -> dict[str, str]:
    """What to look for, any of it. `hs_searchable_…` hold the area code and the local number alone:

    https://developers.hubspot.com/docs/api-reference/search/guide (2026-11). A search takes at most five groups.
    """
    local = national(number)
    return {
        "phone": number,
        "mobilephone": number,
        "hs_searchable_calculated_phone_number": local,
        "hs_searchable_calculated_mobile_number": local,
    }
