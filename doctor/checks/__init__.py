"""The checks, one file an area, in the order of a change's path: each a function of a Setup that returns a Finding."""
