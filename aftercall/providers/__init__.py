"""One module a provider. `aftercall.plugins` knows which there are."""
