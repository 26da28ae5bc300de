"""What the stack costs, against doing without it: ``python -m bench`` measures, docs/benchmark.md keeps the results."""
