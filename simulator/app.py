"""The APIs of the three providers, on one port: their paths differ enough."""

from collections.abc import Mapping

from litestar import Litestar

from simulator.cartesia_api import cartesia_handlers
from simulator.faults import Faults
from simulator.records import Records
from simulator.retell_api import retell_handlers
from simulator.ultravox_api import ultravox_handlers


def make_app(records: Records, api_keys: Mapping[str, str], faults: Faults | None = None) -> Litestar:
    """The three APIs over these records; `api_keys` is the key that each provider accepts."""
    faults = faults or Faults()
    handlers = [
        *retell_handlers(records, api_keys["retell"], faults),
        *cartesia_handlers(records, api_keys["cartesia"], faults),
        *ultravox_handlers(records, api_keys["ultravox"], faults),
    ]
    return Litestar(route_handlers=handlers, openapi_config=None, logging_config=None)
