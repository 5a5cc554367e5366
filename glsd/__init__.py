"""Global-Local Self-Distillation (WACV 2023) as a library: pure functions over tensors and small frozen records.

A name is imported when it is first used, so that CPU workers, which decode and augment, load no models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
