"""Benchmarks: ours beside a naive SSD300 and torchvision's, in one process (`python -m tests.benchmarks`)."""
