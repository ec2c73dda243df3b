"""`python -m export`: write the networks of a recipe as graphs and engines that are checked against torch."""
