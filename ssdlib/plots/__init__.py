"""The figures of the course and of the reports: each function takes an Axes and returns it.

The modules follow the notebooks: data (01), priors (02), model (03), training (04), evaluation and errors
(05), detections (06); style, boxes and charts hold what several of them use.
"""
