"""`python -m rehearsal`: who may see and do what, tried on an embedded Postgres."""
