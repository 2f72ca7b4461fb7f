"""How good a detector is: detections are matched with ground truth once, and every metric is counted from it.

Metrics with bootstrap intervals, errors by kind, calibration of scores, counts, and the comparison of two
detectors. Notebook 5 teaches it.
"""
