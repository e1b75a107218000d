"""scoreline makes image generators fast and proves that they are still good."""

__version__ = "0.1.0"
