"""MMFA: Multi-task Mid-level Feature Alignment (BMVC 2018), the method itself."""

__version__ = "0.1.0"

from mmfa.api import begin, train

__all__ = ["__version__", "begin", "train"]
