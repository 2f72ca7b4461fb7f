"""Three tools around the detector: the page (`app`), archives on a cluster (`cluster`), label errors.

Only the command line imports them. Notebook 06 shows the page and label errors.
"""
