"""The commands of ``python -m mmfa``, one file each."""
