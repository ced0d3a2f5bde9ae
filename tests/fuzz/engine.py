"""One target in atheris: `python -m tests.fuzz.engine TARGET CORPUS [libFuzzer's options]`. Called by `__main__`."""

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["aftercall", "workers"]):
    from tests.fuzz.targets import PROVIDERS, TARGETS, provider_named

    for provider in PROVIDERS:
        provider_named(provider)  # imports its module


def main(name: str, *options: str) -> None:
    target = TARGETS[name]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Mostly by what the input is; now and then any byte, which may break its form."""
        chance = Random(seed)
        if chance.randrange(4) == 0:
            return bytes(atheris.Mutate(data, max_size))
        return target.mutate(data, chance)[:max_size]

    atheris.enabled_hooks.add("RegEx")
    atheris.Setup([sys.argv[0], *options], target.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
