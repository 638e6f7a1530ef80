"""CarRacing: the real environment, its state estimator and its metrics."""
