"""Everything that acts: scripted explorers, the keyboard, planners, policies."""
