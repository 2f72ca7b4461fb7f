"""The SSD300 detector itself: boxes, priors, matching, loss, network, suppression, and its weights.

Notebook 02 teaches boxes, priors and matching, notebook 03 the network and the loss, notebook 06 suppression.
"""
