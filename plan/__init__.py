"""`python -m plan`: what the program would declare, without an engine, Docker, a database or a network."""
