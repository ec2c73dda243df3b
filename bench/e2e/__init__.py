"""Students of several arms at equal wall-clock time: our recipes, parts of them, and published loops.

Each arm has the recipe's teacher, its student network and the same number of seconds. They count from the
loading of the networks to the last training step. The final student counts, never the best. It and the copies
made on the way (`bench.clock`) are evaluated after the end, so nothing can be chosen by the test set.
"""
