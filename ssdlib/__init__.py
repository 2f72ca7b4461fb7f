"""SSD300 for blood cells: the package behind the course's six notebooks."""

__version__ = "0.1.0"
