"""Metrics of world models, and the report that a world's evaluation writes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
