"""Plain-loop references that the fast implementations are compared with."""
