"""`python -m benchmarks`: how fast aftercall is beside simpler and stock ways to do the same, in one run."""
