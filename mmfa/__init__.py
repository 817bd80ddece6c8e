"""MMFA: Multi-task Mid-level Feature Alignment (BMVC 2018), the method itself."""

__version__ = "0.1.0"
