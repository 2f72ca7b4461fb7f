"""Images and their labels: found, read in any common layout, checked, drawn, augmented and loaded.

Nothing here knows the detector. Notebook 01 teaches it.
"""
