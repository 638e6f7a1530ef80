"""Robots behind LeRobot's verbs, and as Gymnasium environments."""
