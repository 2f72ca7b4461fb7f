"""Detection in thousands to millions of images on the machines of a Ray cluster (extra `ray`).

A plan cuts the images into parts. Each is computed by one worker and kept in files of its own, written whole
and named by its number, so that doing it twice ends in the same files. See docs/archives.md.
"""
