"""One module a sink type. `aftercall.plugins` knows which there are."""
