"""How fast is it? Ours beside a naive SSD300 and torchvision's, in one process: `python -m ssdlib.bench`."""
