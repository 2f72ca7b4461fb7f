"""Training of the detector: the loop, optimizer and schedule, checkpoints, and resuming after a stop.

Notebook 04 teaches it; `trainer.Trainer.train_one_epoch` is the loop itself.
"""
