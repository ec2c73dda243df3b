"""Find, fetch and load Fashion-MNIST, and the test set that a recipe names."""
