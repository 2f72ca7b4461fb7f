"""Thousands to millions of fields on many machines: `ssdlib detect --engine-cluster ray` (extra `ray`).

The images are cut into parts. A part is computed by one worker and kept in files of its own, written whole
and named by its number: doing it twice, after whatever was killed, ends in the same files as doing it once.

    plan.py     which image is in which part, kept for going on
    parts.py    the Parquet files of a part, and what all of them say together
    worker.py   the detector at work on parts, in a process of its own
    cluster.py  Ray: so many workers, parts handed out, the lost ones' handed out again
"""
