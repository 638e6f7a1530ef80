"""The control loop of a robot."""
