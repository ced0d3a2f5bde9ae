"""Retell, Cartesia and Ultravox on loopback: their APIs, and a player that sends their webhooks.

Made for the demo, the tests and the benchmarks. It behaves as badly as the vendors do: webhooks come twice, late and
out of order, records are not there yet, and now and then an API refuses to answer; rules make it worse (`faults`).
"""
