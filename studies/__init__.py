"""The questions we ask of MMFA, as data: TOML files and their schema."""
