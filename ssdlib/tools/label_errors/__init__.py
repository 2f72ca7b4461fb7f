"""Finds missing and doubtful labels with networks that were not trained on them, for a person to decide on.

The decisions are applied to a copy of the data set. Notebook 06 shows it, docs/label_errors.md describes it.
"""
