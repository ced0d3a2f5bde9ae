"""The real processes under load and a seeded schedule of faults, and a separate look at what became of every id.

plan.py       what will be posted and what will go wrong, from a seed alone
run.py        carries a plan out: processes.py keeps and breaks them, provider.py posts, outside.py receives
facts.py      what was seen, as NDJSON files in one directory
verify.py     reads those files alone, and says of each promise whether it was kept
"""
