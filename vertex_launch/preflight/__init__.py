"""`python -m vertex_launch check`: checks a deployment before it runs."""
