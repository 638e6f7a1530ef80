"""Tasks of real environments: rewards and goals."""
