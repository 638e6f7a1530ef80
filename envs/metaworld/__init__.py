"""Meta-World: a robot arm on a table with fifty tasks, two cameras and instructions in words."""
