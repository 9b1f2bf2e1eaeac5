"""The engine process: the step loop, its messages, its life."""
