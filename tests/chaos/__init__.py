"""The real processes under load and a seeded schedule of faults, and a separate look at what became of every id.

`make chaos ARGS="--seed 7 --server valkey"`; a failure names the directory with the facts. The same seed and numbers
are the same plan. What it cannot show: a power failure, a disk that lies, a replica that was behind.

    plan.py       what will be posted and what will go wrong, from a seed alone
    run.py        carries a plan out: processes.py keeps and breaks them, provider.py posts, outside.py receives
    facts.py      what was seen, as NDJSON files in one directory
    evidence.py   reads those files alone; deliveries.py, conduct.py and soak.py say of each promise whether it was kept
    report.py     the table of that
"""
