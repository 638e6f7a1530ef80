"""Recipes, stages and the trainer of world models."""
