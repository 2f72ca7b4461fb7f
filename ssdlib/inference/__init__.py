"""Detection in use: images in, `Detections` out, and the files that `ssdlib detect` makes of them.

Notebook 06 finds and draws cells with it; notebook 05 judges what it finds.
"""
