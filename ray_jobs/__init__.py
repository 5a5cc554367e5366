"""The paper as jobs on Ray: pretrain, evaluate, sweep. Importing this imports no Ray until a job is asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
