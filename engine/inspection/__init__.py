"""What `engine.inspect` finds out about a teacher, and the recipe that it writes."""
