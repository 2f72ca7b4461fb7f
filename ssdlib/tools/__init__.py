"""Three tools around the detector: the page (`app`), archives on a cluster (`cluster`), label errors.

Nothing else in the package imports them, except the command line. Notebook 06 shows the page and label errors.
"""
