"""The chain of notebooks, its run folder and its report; sweeps of settings and model cards.

Notebook 04 trains in a run folder, and notebook 06 ends with the report.
"""
