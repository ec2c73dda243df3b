"""`python -m export`: the frozen networks of a recipe as graphs and engines, proved against torch."""
