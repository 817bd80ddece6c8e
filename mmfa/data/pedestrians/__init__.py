"""The embedded pair: rendered pedestrians in two domains, and the source's null twin."""
